"""The notebooks of the docs: stored with their outputs, fit to be read by others, and their code still runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
MOST_BYTES = 300_000
SMALLER = {
    '"tokens": 200_000': '"tokens": 20_000',
    "[25_000, 50_000, 100_000]": "[10_000]",
    '"tokens": 16_384': '"tokens": 2048',
    '"l1_coefficient": [2, 4, 8]': '"l1_coefficient": [2, 8]',
    '"l1_coefficient": [1, 2, 4]': '"l1_coefficient": [1, 4]',
    '"target_l0": [12, 24]': '"target_l0": [24]',
}
"""What the notebook says, and what the test says in its place, for a shorter training."""
IMAGE = re.compile(r"[A-Za-z0-9+/=]{200,}")  # base64, in which anything may look like a path
MACHINE_PATH = re.compile(r"(?<![\w.:/<])/(?:\w[\w.-]*/)+[\w.-]+|\b[A-Z]:\\")


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def shows(code: str) -> bool:
    """Whether a cell ends with an expression, which a notebook shows."""
    return isinstance(ast.parse(code).body[-1], ast.Expr)


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_as_they_ran(path: Path) -> None:
    """In order from the first cell, without errors, warnings and output of other processes."""
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        kinds = {output["output_type"] for output in cell["outputs"]}
        assert kinds <= {"execute_result", "display_data"}, source(cell)
        assert bool(kinds) == shows(source(cell)), source(cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_small_and_tell_nothing_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    assert not MACHINE_PATH.findall(IMAGE.sub("", path.read_text()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_links_of_notebooks_lead_to_files(path: Path) -> None:
    links = [link for cell in cells(path, "markdown") for link in re.findall(r"\]\(([^)#\s]+)", source(cell))]
    assert links
    for link in links:
        assert link.startswith("http") or (path.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_the_first_sweep_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fewer tokens, with fewer SAEs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(plt, "show", plt.close)
    (path,) = (path for path in NOTEBOOKS if path.name == "first_sweep.ipynb")
    text = "\n\n".join(source(cell) for cell in cells(path, "code"))
    for shown, run in SMALLER.items():
        assert text.count(shown) == 1, shown
        text = text.replace(shown, run)
    names: dict[str, Any] = {}
    with plt.rc_context():
        exec(compile(text, path.name, "exec"), names)
    assert "standard" in names["result"]._repr_html_() and "gated needs" in names["found"]._repr_html_()
    assert len(names["asked"]) == 1 and names["asked"]["l0"].between(12, 48).all()
    assert len(names["fvu"]) == 2 and names["fvu"].notna().all(axis=None)
