"""`frontier` and `best` look at what a sweep has recorded: they do without torch, which takes seconds to import."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from recorder import GATED_1, NEWER, STANDARD_1, Recorder, ends

import gsae_ray

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path_factory.mktemp("recorded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recorder.folder)  # MLflow puts the artifacts of an SQLite store into the working directory
        trials = zip(
            [*GATED_1, *STANDARD_1], ends((9, 0.8), (20, 0.9), (40, 0.96), (29, 0.87), (45, 0.95)), strict=True
        )
        recorder.record("sweep", NEWER, list(trials))
        yield recorder


def output_of(recorder: Recorder, *arguments: str) -> str:
    """What a command prints in a process of its own, in which torch must not have been imported when it ends."""
    code = (
        "import sys\nfrom gsae_ray.cli.main import main\n"
        f"main({[*arguments, '--tracking-uri', recorder.uri]!r}, standalone_mode=False)\n"
        "found = {'torch', 'transformers', 'ray', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_frontier_is_shown(recorder: Recorder) -> None:
    table = output_of(recorder, "frontier", "sweep")
    assert "on the frontier" in table and "standard" in table


def test_a_frontier_is_json(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(output_of(recorder, "frontier", "sweep", "--json"))
    rows = pd.read_json(tmp_path / "rows.json").set_index("l0")
    assert rows["sparsity"].to_dict() == {9: 1.0, 20: 2.0, 40: 4.0, 29: 8.0, 45: 0.5}
    assert set(rows["l1_units"]) == {"sum"}


def test_the_best_is_written_as_if_it_were_loaded_and_saved(recorder: Recorder, tmp_path: Path) -> None:
    said = output_of(recorder, "best", "sweep", "--max-l0", "40", "--out", str(tmp_path / "copied"))
    first, why = said.splitlines()
    assert first == f"{GATED_1[2].name}: L0 40.00, loss recovered 0.9600, written to {tmp_path / 'copied'}"
    assert why.startswith("chosen: the highest loss recovered of ")
    sae = gsae_ray.best("sweep", site=SITE, max_l0=40, tracking_uri=recorder.uri)
    assert sae.cfg.metadata["frontier"]["l0"] == 40
    sae.save(tmp_path / "saved")
    copied, saved = (
        {file.name: file.read_bytes() for file in (tmp_path / folder).iterdir()} for folder in ("copied", "saved")
    )
    assert copied == saved
    assert gsae_ray.load(tmp_path / "copied").cfg == sae.cfg


@pytest.mark.slow
def test_the_best_replaces_an_sae_that_was_saved_there(recorder: Recorder, tmp_path: Path) -> None:
    output_of(recorder, "best", "sweep", "--max-l0", "10", "--out", str(tmp_path))
    output_of(recorder, "best", "sweep", "--max-l0", "40", "--out", str(tmp_path))
    assert gsae_ray.load(tmp_path).cfg.metadata["frontier"]["l0"] == 40


def test_runs_from_before_their_sparsity_was_recorded_have_it_on_the_frontier(
    recorder: Recorder, tmp_path: Path
) -> None:
    shutil.copy(recorder.folder / "mlflow.db", tmp_path)
    database = sqlite3.connect(tmp_path / "mlflow.db")
    with database:
        assert database.execute("DELETE FROM params WHERE key = 'sparsity'").rowcount == 5
    database.close()
    new, old = (
        gsae_ray.frontier("sweep", tracking_uri=uri) for uri in (recorder.uri, f"sqlite:///{tmp_path}/mlflow.db")
    )
    pd.testing.assert_frame_equal(new, old)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["best", "sweep", "--out", "sae"], "gsae-ray: best: give either max_l0"),
        (["best", "sweep", "--max-l0", "40", "--knee", "--out", "sae"], "gsae-ray: best: give either max_l0"),
        (["plot", "sweep", "--out", "p.jpg"], "gsae-ray: --out: p.jpg ends in none of .png, .svg, .pdf"),
    ],
)
def test_wrong_arguments_are_refused_before_what_takes_seconds_is_imported(arguments: list[str], said: str) -> None:
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(('pandas', 'mlflow', 'matplotlib', 'torch')))\n"
        f"from gsae_ray.cli.main import main\nmain({arguments!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.startswith(said), done.stderr
