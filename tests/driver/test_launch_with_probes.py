"""Probes of a sweep that is finished: asked for later, they cost only themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from golden import SHORT, parent_run, run

import gsae_ray
from gsae_ray.activations.producer import Producer
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import launch
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.errors import UserError
from gsae_ray.evaluation.metrics import METRICS
from gsae_ray.evaluation.task import Probe
from gsae_ray.results.frontier import frontier
from gsae_ray.saes import load, to_bytes

PLAIN = {**SHORT, "sites": {"layers": [1], "points": ["resid_post"]}}
PROBES = [{"name": "python", "data": "builtin", "tokens": 4000}]
PROBED = {**PLAIN, "evaluation": {**SHORT["evaluation"], "probes": PROBES}}
NAMES = [name for name, metric in METRICS.items() if metric.takes == "probes"]


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    return PLAIN


def files(home: Path) -> dict[Path, int]:
    """What trials left -> when it was written."""
    folder = home / "runs/golden/trials"
    found = [path for pattern in ("*/DONE", "*/evaluations/*") for path in folder.glob(pattern)]
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def probed(launched: launch.SweepResult, home: Path) -> tuple[launch.SweepResult, dict[Path, int]]:
    assert launched.failures == {} and not {*NAMES} & {*launched.frontier()}
    before = files(home)
    return run(PROBED, home), before


def test_what_is_wrong_with_probe_data_is_said_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": "b"}\n')
    asked = {**PLAIN, "evaluation": {"probes": [{"name": "one", "data": str(tmp_path / "one.jsonl")}]}}
    with pytest.raises(UserError, match=r"^evaluation\.probes\.0: .*every document has the label 'b'"):
        prepare(Sweep.model_validate(asked), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_probes_change_no_fingerprint_and_a_sweep_without_them_asks_for_none(tmp_path: Path) -> None:
    plain, probed = (prepare(Sweep.model_validate(sweep), tmp_path / "runs") for sweep in (PLAIN, PROBED))
    assert plain.evaluation.fingerprint == probed.evaluation.fingerprint
    assert [trial.identity for trial in plain.trials] == [trial.identity for trial in probed.trials]
    assert plain.evaluation.encoders == (None,) and plain.source.probes is None
    assert probed.source.probes is not None
    assert probed.evaluation.encoders == (None, probed.source.probes.fingerprint)
    assert probed.producer.host > plain.producer.host, "what is kept of probes is counted"


@pytest.mark.slow
def test_probes_that_are_asked_for_later_cost_only_themselves(
    probed: tuple[launch.SweepResult, dict[Path, int]], home: Path
) -> None:
    result, before = probed
    assert before.items() <= files(home).items() and len(files(home)) == len(before) + 2
    assert parent_run(result).data.metrics["evaluations"] == 2
    assert result.failures == {}


@pytest.mark.slow
def test_probes_are_columns_with_intervals_in_mlflow_and_in_storage(
    probed: tuple[launch.SweepResult, dict[Path, int]], home: Path
) -> None:
    rows = probed[0].frontier()
    for name in NAMES:
        assert (rows[f"{name}_low"] <= rows[name]).all() and (rows[name] <= rows[f"{name}_high"]).all(), name
    assert (rows["probe_auc"] > 0.6).all() and (rows["probe_auc"] >= rows["probe_auc_1"] - 0.05).all()
    assert rows["probe_auc_raw"].nunique() == 1, "the baseline is of the site"
    stored = frontier("golden", storage=home / "runs")
    both = ["trial", *NAMES, "dense_heldout_low", "dense_train"]
    pd.testing.assert_frame_equal(rows[both].reset_index(drop=True), stored[both].reset_index(drop=True))
    assert np.isfinite(rows[["dead_heldout", "dense_heldout", "dead_train", "dense_train"]]).all(axis=None)


@pytest.mark.slow
def test_best_takes_probes_as_the_quality(probed: tuple[launch.SweepResult, dict[Path, int]]) -> None:
    result, _ = probed
    rows = result.frontier()
    chosen = gsae_ray.best(
        "golden", site="blocks.1.hook_resid_post", max_l0=1e9, by="probe_auc", tracking_uri=result.tracking_uri
    )
    assert chosen.cfg.metadata["frontier"]["probe_auc"] == pytest.approx(rows["probe_auc"].max())


@pytest.mark.slow
@pytest.mark.usefixtures("probed")
def test_a_probe_in_a_launch_is_the_probe_alone(home: Path) -> None:
    prepared = prepare(Sweep.model_validate(PROBED), home / "runs")
    producer, probes = Producer(producer_spec(prepared)), prepared.source.probes
    assert probes is not None
    rows = frontier("golden", storage=home / "runs").set_index("trial")
    for trial in prepared.trials:
        sae = load(home / "runs/golden/trials" / trial.directory_name / "sae")
        alone = producer.run(Probe(trial.site, *to_bytes(sae), probes))
        assert {name: alone.metrics[name] for name in NAMES} == {name: rows.loc[trial.name, name] for name in NAMES}
