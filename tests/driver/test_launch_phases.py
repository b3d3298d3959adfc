"""Launches whose trials fail, and trials that begin when others have ended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from golden import SHORT, parent_run, run
from mlflow.tracking import MlflowClient

import gsae_ray
from gsae_ray.builtin import MODEL_DIR
from gsae_ray.driver.launch import SweepResult
from gsae_ray.errors import UserError
from gsae_ray.storage.trial_directory import TrialDirectory

STANDARD = {"architecture": "standard", "widths": [64], "l1_coefficient": [1, 2]}
SHIFTED = {"architecture": "rescale_shift", "widths": [64], "l1_coefficient": [1, 2], "tokens": 20_000}
FAILS = {"widths": [32], "lr": 1e30, "schedule": "paper"}
DEAD = {**STANDARD, "l1_coefficient": 1e6, "lr": 0.1, "objective": "paper", "gradient_clip": 0.0, "unit_biases": False}
"""Clipped, it would not die at once."""
PHASES = {
    **SHORT,
    "name": "phases",
    "sites": {"layers": [1], "points": ["resid_post"]},
    "training": {**SHORT["training"], "tokens": 40_000},
    "saes": [SHIFTED, STANDARD, {**STANDARD, **FAILS}, {**SHIFTED, **FAILS}, DEAD],
}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def phases(home: Path, local_ray: None) -> SweepResult:  # noqa: ARG001
    return run(PHASES, home)


def test_a_trial_in_nan_is_failed_and_the_sweep_goes_on(phases: SweepResult) -> None:
    in_nan = {name: reason for name, reason in phases.failures.items() if "standard" in name}
    assert len(in_nan) == 2
    assert all("lr1e30" in name and reason.startswith("the loss is not finite") for name, reason in in_nan.items())
    assert len(phases.frontier()) == 4
    client = MlflowClient(phases.tracking_uri)
    experiment = client.get_experiment_by_name("phases").experiment_id
    failed = client.search_runs([experiment], "attributes.status = 'FAILED'")
    assert {run.data.tags["gsae.trial"] for run in failed} == phases.failures.keys()


def test_a_trial_that_failed_for_good_is_left_by_auto_and_tried_again_by_resume(
    phases: SweepResult, home: Path
) -> None:
    def attempts() -> dict[str, int]:
        return {path.name: TrialDirectory(path).newest_attempt for path in (home / "runs/phases/trials").iterdir()}

    before = attempts()
    second = run(PHASES, home, resume="auto")
    assert second.failures == phases.failures
    assert second.launch_id == phases.launch_id and attempts() == before
    third = run(PHASES, home, resume=True)
    assert third.failures == phases.failures
    assert third.launch_id == phases.launch_id
    assert attempts() == {name: n + ("_w32_" in name) for name, n in before.items()}


@pytest.mark.usefixtures("phases")
def test_a_sweep_of_nothing_but_dead_saes_ends_with_a_note(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs", tmp_path / "runs")  # where they are trained
    result = run({**PHASES, "saes": [DEAD]}, tmp_path)
    assert result.picture is None and result.failures == {}
    assert result.frontier().empty and "L0 = 0" in result.frontier().attrs["notes"][0]
    assert parent_run(result).info.status == "FINISHED"


def test_weights_that_cannot_be_loaded_are_refused_before_anything_starts(home: Path, tmp_path: Path) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    sweep = {**SHORT, "name": "damaged", "model": {"name": str(tmp_path / "model")}}
    with pytest.raises(UserError, match="^model.name: cannot load the weights"):
        run(sweep, home)
    assert MlflowClient(f"sqlite:///{home}/mlflow.db").get_experiment_by_name("damaged") is None
    assert not (home / "runs/damaged").exists()


def test_rescale_and_shift_begins_when_its_parents_are_done_and_is_skipped_where_they_failed(
    phases: SweepResult, home: Path
) -> None:
    assert phases.forward_ratio == 1.0, "the second phase reads what the first has read"
    assert sorted(reason.split(" ")[0] for reason in phases.failures.values()) == ["skipped:"] * 2 + ["the"] * 2
    skipped = [trial for trial, reason in phases.failures.items() if reason == "skipped: parent failed"]
    assert all("rescale_shift_w32" in trial for trial in skipped)

    rows = phases.frontier().set_index(["architecture", "sparsity"])
    for l1 in (1.0, 2.0):
        parent, shifted = (rows.loc[(name, l1)] for name in ("standard", "rescale_shift"))
        assert parent["gamma"] < 0.95 < shifted["gamma"], "the shrinkage is gone"
        assert shifted["fvu"] < parent["fvu"]
    client = MlflowClient(phases.tracking_uri)
    run_of = client.get_run(rows.loc[("rescale_shift", 1.0)]["run_id"])
    assert run_of.data.params["parent"] == rows.loc[("standard", 1.0)]["trial"]

    saes = home / "runs/phases/trials"
    paths = (next(saes.glob(f"*{name}_w64_l1-1_*")) for name in ("shift", "standard"))
    shifted, parent = (gsae_ray.load(path / "sae").state_dict() for path in paths)
    assert torch.equal(shifted["W_dec"], parent["W_dec"]) and torch.equal(shifted["b_gate"], parent["b_enc"])
    assert not torch.equal(shifted["b_mag"], parent["b_enc"])
