"""What README and docs show works: links lead somewhere, commands are known with their options, Python blocks run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
import yaml
from click.testing import CliRunner

import gsae_ray
from gsae_ray.cli.main import main
from gsae_ray.config.load import load_sweep

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "sweeps/README.md",
    ROOT / ".github/CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    \S.*\n)+", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#[^)]*)?\)")


def blocks(page: Path, language: str, start: str = "") -> list[str]:
    """Fenced blocks of a language that begin so."""
    return [text for found, text in FENCE.findall(page.read_text()) if found == language and text.startswith(start)]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of each command in fenced bash blocks and in indented ones."""
    for page in PAGES:
        plain = FENCE.sub("", page.read_text())
        for block in (*blocks(page, "bash"), *INDENTED.findall(plain)):
            for line in block.replace("\\\n", " ").splitlines():
                words: list[str] = []
                for word in (*shlex.split(line, comments=True), "&&"):
                    if word not in ("&&", "&"):
                        words.append(word)
                    elif words:
                        yield page.name, words
                        words = []


def parsed(group: click.Group, words: list[str]) -> None:
    """Has click parse a command, which is not run."""
    options = {name for parameter in group.params for name in parameter.opts}
    while words[0].startswith("-"):
        assert words[0] in options
        words = words[1:]
    group.commands[words[0]].make_context(words[0], list(words[1:])).close()


def known(words: list[str]) -> bool:
    """Whether a command is one that these tests can check, and is right."""
    match words:
        case ["gsae-ray", *rest]:
            parsed(main, rest)
        case ["python", script, *rest] if script.endswith(".py"):
            source = (ROOT / script).read_text()
            assert all(f'"{word}"' in source for word in rest if word.startswith("--")), words
        case ["python", "-c", code]:
            compile(code, "-c", "exec")
        case ["pip", "install", "-e", what]:
            extras = re.findall(r"\w+", what)
            settings = (ROOT / "pyproject.toml").read_text()
            assert all(f"\n{extra} = [" in settings for extra in extras), words
        case [".ci/run", *parts]:
            script = (ROOT / ".ci/run").read_text()
            assert all(f"\n{part}() {{" in script for part in parts), words
        case _:
            return False
    return True


def test_links_lead_to_files() -> None:
    for page in PAGES:
        for target in LINK.findall(page.read_text()):
            if target and not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_every_page_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("[!i]*.md") if f"(docs/{page.name}" not in text] == []


def test_commands_are_known_with_their_options() -> None:
    others = {words[0] for _, words in commands() if not known(words)}
    assert others <= {"export", "pytest", "python", ".", "pip", "ray", "for", "done"}
    assert sum(words[0] == "gsae-ray" for _, words in commands()) > 20


RESOLVE = """
import functools, importlib, sys
for path in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "gsae_ray"]:
        del sys.modules[name]
    names = path.split(".")
    functools.reduce(getattr, names[1:], importlib.import_module(names[0]))
"""
"""Finds each name with no more than `import gsae_ray` before it, as in a fresh process."""


@pytest.mark.slow
def test_names_of_python_are_there_after_one_import() -> None:
    """Those of the package itself are tested with the imports; what a page imports needs no more."""
    text = re.sub(r"(from|-m) gsae_ray\.[\w.]+", "", "".join(page.read_text() for page in PAGES))
    found = set(re.findall(r"(?<![\w./])gsae_ray(?:\.\w+){2,}", text))
    assert {"gsae_ray.results.over_seeds", "gsae_ray.results.plots.plot_frontier"} <= found
    subprocess.run([sys.executable, "-c", RESOLVE, *sorted(found)], check=True, cwd=ROOT)


def test_scripts_and_tests_that_are_named_are_there() -> None:
    for page in PAGES:
        for path in re.findall(r"`((?:tests|sweeps|gsae_ray|deploy)/[\w/.]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
    table = (ROOT / "docs/benchmarks.md").read_text()
    assert all(f"`{path.name}`" in table for path in (ROOT / "tests/benchmarks").glob("*.py"))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml", "name:")], ids=lambda page: page.name)
def test_sweep_files_that_are_shown_are_sweep_files(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml", "name:"):
        (tmp_path / "sweep.yaml").write_text(text)
        assert load_sweep(tmp_path / "sweep.yaml").saes


def quickstart(folder: Path) -> None:
    """The quickstart's file, in a folder of its own, with fewer and shorter trials."""
    sweep = yaml.safe_load((ROOT / "sweeps/quickstart.yaml").read_text())
    sweep["sites"]["layers"] = [2]
    sweep["training"]["tokens"], sweep["evaluation"]["tokens"] = 20_000, 2048
    for entry in sweep["saes"]:
        entry["l1_coefficient"] = [2, 8]
    (folder / "sweeps").mkdir()
    (folder / "sweeps/quickstart.yaml").write_text(yaml.safe_dump(sweep))


@pytest.mark.slow
def test_python_blocks_run_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One page after the other; the first launches the sweep, the others find it done."""
    quickstart(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for page in PAGES:
        names = {"x_BD": torch.randn(4, 128)}
        for code in blocks(page, "python"):
            exec(compile(code, page.name, "exec"), names)
    assert (tmp_path / "my_sae/cfg.json").exists()


@pytest.mark.slow
def test_the_commands_on_activations_run_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the small quickstart: what is collected first is trained on last."""
    quickstart(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (page,) = (page for page in PAGES if page.name == "activations.md")
    Path("on_files.yaml").write_text(blocks(page, "yaml", "name: on_files")[0])
    smaller = ["sites.layers=[2]", "saes.0.l1_coefficient=[2]", "training.tokens=20_000", "evaluation.tokens=2048"]
    run = 0
    for name, words in commands():
        if name == page.name and words[1] in ("collect", "run"):
            settings = [word for setting in smaller for word in ("--set", setting)] if words[1] == "run" else []
            result = CliRunner().invoke(main, [*words[1:], *settings])
            assert result.exit_code == 0, result.output
            run += 1
    assert run == 5 and Path("acts/schema.json").exists() and Path("for_saelens/train").is_dir()
    rows = gsae_ray.frontier("on_files")
    assert len(rows) == 1 and rows["loss_recovered"].notna().all()
