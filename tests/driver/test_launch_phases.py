"""Launches whose trials fail, and trials that begin when others have ended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from golden import ONE_PRODUCER, SHORT, parent_run, run
from mlflow.tracking import MlflowClient

import gsae_ray
from gsae_ray.builtin import MODEL_DIR
from gsae_ray.errors import UserError
from gsae_ray.storage.trial_directory import TrialDirectory


@pytest.mark.usefixtures("local_ray")
def test_a_trial_in_nan_is_failed_and_the_sweep_goes_on(home: Path) -> None:
    sweep = {**SHORT, "name": "nan", "saes": [{**SHORT["saes"][1], "lr": [1e30, 1e-3]}]}
    result = run({**sweep, "sites": {"layers": [1], "points": ["resid_post"]}}, home)
    assert len(result.frontier()) == 1
    ((name, reason),) = result.failures.items()
    assert "lr1e30" in name and "not finite" in reason
    client = MlflowClient(result.tracking_uri)
    experiment = client.get_experiment_by_name("nan").experiment_id
    failed = client.search_runs([experiment], "attributes.status = 'FAILED'")
    assert [run.data.tags["gsae.trial"] for run in failed] == [name]


@pytest.mark.usefixtures("local_ray")
def test_a_trial_that_failed_for_good_is_left_by_auto_and_tried_again_by_resume(home: Path) -> None:
    sweep = {**SHORT, "name": "again", "saes": [{**SHORT["saes"][1], "lr": 1e30}]}
    sweep |= {"sites": {"layers": [1], "points": ["resid_post"]}}
    first = run(sweep, home, resume="auto")
    (path,) = (home / "runs/again/trials").iterdir()
    attempts = TrialDirectory(path).newest_attempt
    second = run(sweep, home, resume="auto")
    assert second.failures == first.failures and list(first.failures.values())[0].startswith("the loss is not finite")
    assert second.launch_id == first.launch_id and TrialDirectory(path).newest_attempt == attempts
    third = run(sweep, home, resume=True)
    assert third.failures == first.failures
    assert third.launch_id == first.launch_id and TrialDirectory(path).newest_attempt == attempts + 1


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_of_nothing_but_dead_saes_ends_with_a_note(home: Path) -> None:
    plain = {"objective": "paper", "gradient_clip": 0.0, "unit_biases": False}  # clipped, it would not die at once
    sweep = {**ONE_PRODUCER, "name": "dead", "saes": [{**SHORT["saes"][1], "l1_coefficient": 1e6, "lr": 0.1, **plain}]}
    sweep |= {"sites": {"layers": [1], "points": ["resid_post"]}}
    result = run(sweep, home)
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


@pytest.mark.usefixtures("local_ray")
def test_rescale_and_shift_begins_when_its_parents_are_done_and_is_skipped_where_they_failed(home: Path) -> None:
    standard = {"architecture": "standard", "widths": [64], "l1_coefficient": [1, 2]}
    child = {"architecture": "rescale_shift", "widths": [64], "l1_coefficient": [1, 2], "tokens": 20_000}
    fails = {"lr": 1e30, "schedule": "paper"}
    sweep = {**SHORT, "name": "phases", "sites": {"layers": [1], "points": ["resid_post"]}}
    sweep |= {
        "training": {**SHORT["training"], "tokens": 40_000},
        "saes": [child, standard, {**standard, "widths": [32], **fails}, {**child, "widths": [32], **fails}],
    }
    result = run(sweep, home)
    assert result.forward_ratio == 1.0, "the second phase reads what the first has read"
    assert sorted(reason.split(" ")[0] for reason in result.failures.values()) == ["skipped:"] * 2 + ["the"] * 2
    skipped = [trial for trial, reason in result.failures.items() if reason == "skipped: parent failed"]
    assert all("rescale_shift_w32" in trial for trial in skipped)

    rows = result.frontier().set_index(["architecture", "sparsity"])
    for l1 in (1.0, 2.0):
        parent, shifted = (rows.loc[(name, l1)] for name in ("standard", "rescale_shift"))
        assert parent["gamma"] < 0.95 < shifted["gamma"], "the shrinkage is gone"
        assert shifted["fvu"] < parent["fvu"]
    client = MlflowClient(result.tracking_uri)
    run_of = client.get_run(rows.loc[("rescale_shift", 1.0)]["run_id"])
    assert run_of.data.params["parent"] == rows.loc[("standard", 1.0)]["trial"]

    saes = home / "runs/phases/trials"
    paths = (next(saes.glob(f"*{name}_w64_l1-1_*")) for name in ("shift", "standard"))
    shifted, parent = (gsae_ray.load(path / "sae").state_dict() for path in paths)
    assert torch.equal(shifted["W_dec"], parent["W_dec"]) and torch.equal(shifted["b_gate"], parent["b_enc"])
    assert not torch.equal(shifted["b_mag"], parent["b_enc"])
