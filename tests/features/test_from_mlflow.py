"""Dashboards of SAEs that are read from MLflow, with the tables among the artifacts of their runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from dashboards import storage_of
from mlflow.tracking import MlflowClient
from random_feature_tables import log_tables, random_tables
from recorder import NEWER, Recorder, ends
from trials import expand

from gsae_ray.cli.main import main
from gsae_ray.results import features
from gsae_ray.results.features import with_features
from gsae_ray.results.frontier import frontier
from gsae_ray.tracking import artifacts

TRIALS = expand("gated", l1_coefficient=[1.0, 2.0])


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    """Two SAEs; those of `bare` have no tables. There is no storage here."""
    recorder = Recorder(tmp_path_factory.mktemp("recorded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recorder.folder)
        patch.setenv("MLFLOW_TRACKING_URI", recorder.uri)
        for experiment in ("small", "bare"):
            recorder.record(experiment, NEWER, [*zip(TRIALS, ends((40, 0.96), (20, 0.90)), strict=True)])
        for number, run_id in enumerate(frontier("small")["run_id"]):
            made = random_tables(16, seed=number, label=f"gated {number}")
            log_tables(MlflowClient(recorder.uri), run_id, made, recorder.folder / f"tables-{number}")
        yield recorder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["features", *map(str, arguments)])


@pytest.mark.usefixtures("recorder")
def test_saes_and_tables_are_read_from_mlflow(tmp_path: Path) -> None:
    result = invoke("small", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "2 SAEs (the SAEs on the frontier" in result.output
    index = (tmp_path / "out/index.html").read_text("utf-8")
    assert "gated 0" in index and "gated 1" in index and "Which features survive" in index


@pytest.mark.usefixtures("recorder")
def test_each_sae_and_its_tables_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[str, str]] = []

    def counting(what: str, fetch: Any) -> Any:
        def counted(run_id: str, *rest: Any) -> Any:
            fetched.append((what, run_id))
            return fetch(run_id, *rest)

        return counted

    monkeypatch.setattr(artifacts, "fetch_sae", counting("sae", artifacts.fetch_sae))
    monkeypatch.setattr(features, "fetch_features", counting("tables", artifacts.fetch_features))
    result = invoke("small", "--out", tmp_path / "out", "--neuronpedia")
    assert result.exit_code == 0, result.output
    run_ids = frontier("small")["run_id"]
    assert sorted(fetched) == sorted((what, run_id) for what in ("sae", "tables") for run_id in run_ids)


def test_mlflow_that_is_named_is_read_though_there_is_a_storage(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage_of(tmp_path / "gsae_runs")  # of an experiment with that name
    assert invoke("small", "--out", "here").exit_code == 0 and len([*Path("here").glob("*/index.html")]) == 4
    monkeypatch.chdir(recorder.folder)  # where MLflow puts artifacts
    (recorder.folder / "gsae_runs").symlink_to(tmp_path / "gsae_runs")
    result = invoke("small", "--out", tmp_path / "there", "--tracking-uri", recorder.uri)
    (recorder.folder / "gsae_runs").unlink()
    assert result.exit_code == 0, result.output
    assert "gated 0" in (tmp_path / "there/index.html").read_text("utf-8")


@pytest.mark.usefixtures("recorder")
def test_tables_that_are_nowhere_and_cannot_be_made_here_are_refused(tmp_path: Path) -> None:
    result = invoke("bare", "--out", tmp_path / "out")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "--storage: 2 of these SAEs have no tables of features" in result.stderr
    assert "MLflow was read" in result.stderr
    assert not (tmp_path / "out").exists()


def test_those_of_another_version_or_text_are_none(recorder: Recorder, tmp_path: Path) -> None:
    client, rows = MlflowClient(recorder.uri), frontier("bare")
    made = random_tables(16)
    log_tables(client, rows["run_id"][0], made, tmp_path / "right")
    assert with_features(rows, None, None) == {rows["run_id"][0]}
    for number, (key, value) in enumerate({"version": 1, "heldout": "1" * 64, "sae": "0" * 64}.items()):
        about: Any = {**made.about, key: value}
        dataclasses.replace(made, about=about).write(tmp_path / str(number))
        client.log_artifacts(rows["run_id"][0], str(tmp_path / str(number)), "features")
        assert with_features(rows, None, None) == set()
