"""Tables of features of a sweep's frontier: made at a launch's end, and where they are missing by the next one."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner
from golden import SHORT, run
from mlflow.tracking import MlflowClient
from rich.console import Console

from gsae_ray.cli.main import main
from gsae_ray.config.features import FeatureSettings
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import launch
from gsae_ray.driver.features import make_features
from gsae_ray.driver.prepare import prepare
from gsae_ray.errors import UserError
from gsae_ray.feature_tables import read
from gsae_ray.files import STALE_S

PIECES = {"contexts": 4, "window": 8}
FEATURES = {**SHORT, "evaluation": {**SHORT["evaluation"], "features": PIECES}}


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    return FEATURES


def folders(home: Path) -> dict[str, Path]:
    """Trial -> its tables."""
    found = {}
    for path in sorted((home / "runs/golden/trials").iterdir()):
        if (path / "features/about.json").exists():
            found[path.name.rpartition("-")[0]] = path / "features"
    return found


def when_made(home: Path) -> dict[str, int]:
    return {name: (path / "about.json").stat().st_mtime_ns for name, path in folders(home).items()}


def artifacts(result: launch.SweepResult) -> dict[str, tuple[str, list[str]]]:
    """Trial -> its tag, and its files in MLflow."""
    client = MlflowClient(result.tracking_uri)
    experiment = client.get_experiment_by_name(result.experiment)
    query = f"tags.`gsae.launch` = '{result.launch_id}' and tags.`gsae.kind` = 'trial'"
    return {
        run.data.tags["gsae.trial"]: (
            run.data.tags.get("gsae.features", ""),
            [item.path for item in client.list_artifacts(run.info.run_id, "features")],
        )
        for run in client.search_runs([experiment.experiment_id], query)
    }


@pytest.mark.slow
def test_tables_are_those_of_the_frontier_in_storage_and_in_mlflow(
    launched: launch.SweepResult, home: Path, tmp_path: Path
) -> None:
    rows = launched.frontier()
    best = rows[rows["on_frontier"]].set_index("trial")
    made = folders(home)
    assert made.keys() == {*best.index} and len(made) >= 2
    for name, folder in made.items():
        tables = read(folder)
        assert tables is not None and tables.features.num_rows == best.loc[name, "d_sae"]
        assert tables.about["label"] == f"{best.loc[name, 'architecture']} w{best.loc[name, 'd_sae']} " + (
            f"λ{best.loc[name, 'sparsity']:g}, L0 {best.loc[name, 'l0']:.3g}"
        )
        fired = sum(tables.features["fired"].to_pylist())
        assert fired / tables.about["rows"] == pytest.approx(best.loc[name, "l0"], rel=1e-6), "on the same rows"
        alive = sum(count > 0 for count in tables.features["fired"].to_pylist()) / tables.features.num_rows
        assert alive == pytest.approx(best.loc[name, "alive_fraction"])
        assert tables.about["logit_effects"] is not None
    files = [f"features/{name}" for name in ("about.json", "contexts.parquet", "features.html", "features.parquet")]
    files.append("features/tokens.parquet")
    found = artifacts(launched)
    assert {name for name, (tag, paths) in found.items() if tag and sorted(paths) == files} == made.keys()
    uri = f"runs:/{best['run_id'].iloc[0]}/features"
    path = mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path), tracking_uri=launched.tracking_uri)
    fetched, stored = read(Path(path)), read(made[best.index[0]])
    assert fetched is not None and stored is not None and fetched.about == stored.about


@pytest.mark.slow
def test_a_table_that_is_missing_is_made_by_resuming_and_no_other(launched: launch.SweepResult, home: Path) -> None:
    before, first = when_made(home), sorted(folders(home))[0]
    lost = folders(home)[first]
    kept = read(lost)
    shutil.rmtree(lost)
    living, dead = (lost.parent / f".features-of-a-{name}-process" for name in ("living", "dead"))
    for folder in (living, dead):
        folder.mkdir()
    long_ago = time.time() - 2 * STALE_S
    os.utime(dead, (long_ago, long_ago))
    again = run(FEATURES, home, resume=True)
    assert again.launch_id == launched.launch_id and again.failures == {}
    after = when_made(home)
    assert after.keys() == before.keys() and after.pop(first) > before.pop(first) and after == before
    assert [*lost.parent.glob(".features*")] == [living]
    living.rmdir()
    found = read(lost)
    assert kept is not None and found is not None and found.about == kept.about
    assert found.features.equals(kept.features) and found.contexts.equals(kept.contexts), "the same, bit for bit"
    assert (home / "runs/golden/launches" / launched.launch_id / "DONE").exists()


@pytest.mark.slow
def test_a_launch_that_has_them_starts_nothing(launched: launch.SweepResult, home: Path) -> None:  # noqa: ARG001
    before = when_made(home)
    result = run(FEATURES, home)
    assert when_made(home) == before and result.failures == {}
    assert {name for name, (tag, _) in artifacts(result).items() if tag} == before.keys(), "they are this launch's, too"


@pytest.mark.slow
def test_a_launch_whose_tables_cannot_be_made_is_published_without(launched: launch.SweepResult, home: Path) -> None:
    before, first = when_made(home), sorted(folders(home))[0]
    lost = folders(home)[first]
    shutil.rmtree(lost)
    lost.symlink_to(home / "nowhere")
    result = run(FEATURES, home, resume=True)
    assert result.failures == {} and result.mirrored and result.picture is not None
    folder = home / "runs/golden/launches" / result.launch_id
    events = (folder / "events.jsonl").read_text()
    assert "feature tables are not made: " in events and not (folder / "DONE").exists()
    lost.unlink()
    run(FEATURES, home, resume=True)
    assert when_made(home).keys() == before.keys() and (folder / "DONE").exists()
    assert launched.experiment == result.experiment


@pytest.mark.slow
def test_they_are_made_without_ray_where_others_are_asked_for(launched: launch.SweepResult, home: Path) -> None:
    name = next(iter(folders(home)))
    where: dict[str, Any] = {"storage": home / "runs", "tracking_uri": launched.tracking_uri}
    quiet = Console(quiet=True)
    before = when_made(home)
    made, notes = make_features("golden", launch=launched.launch_id, console=quiet, **where)
    assert notes == [] and made == folders(home) and when_made(home) == before
    kept = read(made[name])
    wider = FeatureSettings(contexts=4, window=16)
    made, notes = make_features("golden", [name], settings=wider, launch=launched.launch_id, console=quiet, **where)
    after = when_made(home)
    assert notes == [] and after.pop(name) > before.pop(name) and after == before
    found = read(made[name])
    assert kept is not None and found is not None
    same, before_it = (
        table.features.drop_columns("off") for table in (found, kept)
    )  # `off` names pieces that are shown
    assert same.equals(before_it), "a producer of its own gives the same, bit for bit"
    assert {*map(len, found.contexts["tokens"].to_pylist())} == {16}
    with pytest.raises(UserError, match="^trial: launch .* has no finished 'x'"):
        make_features("golden", ["x"], launch=launched.launch_id, console=quiet, **where)


def test_they_change_neither_identities_nor_fingerprints(tmp_path: Path) -> None:
    plain, asked = (prepare(Sweep.model_validate(sweep), tmp_path / "runs") for sweep in (SHORT, FEATURES))
    assert plain.evaluation == asked.evaluation
    assert [trial.identity for trial in plain.trials] == [trial.identity for trial in asked.trials]
    assert asked.producer.host >= plain.producer.host


@pytest.mark.slow
def test_dashboards_have_missing_tables_made_first(launched: launch.SweepResult, home: Path, tmp_path: Path) -> None:
    before, first = when_made(home), sorted(folders(home))[0]
    shutil.rmtree(folders(home)[first])
    where = ["--storage", str(home / "runs"), "--launch", launched.launch_id, "--tracking-uri", launched.tracking_uri]
    result = CliRunner().invoke(main, ["features", "golden", "--out", str(tmp_path / "out"), *where])
    assert result.exit_code == 0, result.output
    assert "making feature tables of 1 SAEs" in result.output
    after = when_made(home)
    assert after.pop(first) > before.pop(first) and after == before
    pages = {path.parent.name for path in tmp_path.glob("out/*/index.html")}
    assert pages == folders(home).keys()
