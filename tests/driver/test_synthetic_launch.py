"""A sweep without a language model, end to end: real Ray processes, a real MLflow store, known features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from elsewhere import near_identity
from golden import parent_run, run
from rich.console import Console
from synthetic_sweeps import SWEEP

import gsae_ray
from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.driver import launch
from gsae_ray.driver.prepare import PreparedSweep, producer_spec
from gsae_ray.errors import UserError
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.results.frontier import frontier
from gsae_ray.saes import to_bytes
from gsae_ray.training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    return {**SWEEP, "producers": {"count": 2}}


def test_every_trial_is_trained_on_rows_that_are_made_once(launched: launch.SweepResult, plan: PreparedSweep) -> None:
    assert launched.failures == {} and launched.forward_ratio == 1
    run_of_launch = parent_run(launched).data
    assert run_of_launch.metrics["rows_produced"] == sum(plan.layout.rows) == 20_000
    params = {"model": "synthetic", "model.features": "24", "dataset.seed": "0", "heldout_rows": "2000"}
    assert params.items() <= run_of_launch.params.items()
    assert "context_size" not in run_of_launch.params


def test_law_2_a_trial_in_a_sweep_is_the_trial_alone_bit_for_bit(
    launched: launch.SweepResult, plan: PreparedSweep
) -> None:
    for trial in plan.trials:
        reader = LocalBlockReader(Producer(producer_spec(plan)), trial.site)
        trainer = Trainer(trial, RowStream(reader, plan.layout, trial.site))
        while not trainer.done:
            trainer.train_interval()
        shared = gsae_ray.load(launched.storage / "synthetic/trials" / trial.directory_name / "sae")
        assert to_bytes(trainer.finished_sae({}))[1] == to_bytes(shared)[1], trial.name
        model = shared.cfg.section("model")
        assert model["features"] == 24 and shared.cfg.section("dataset")["seed"] == 0


def test_the_frontier_has_what_is_known_of_the_features(launched: launch.SweepResult, plan: PreparedSweep) -> None:
    rows = launched.frontier()
    assert len(rows) == 2 and rows["on_frontier"].any() and rows["loss_recovered"].isna().all()
    assert rows["mcc"].between(0.5, 1).all() and rows["true_l0"].between(1.8, 2.2).all()
    assert rows["absorption"].between(0, 1).all()
    assert rows.attrs["notes"] == []
    mine = frontier("synthetic", storage=launched.storage)
    pd.testing.assert_frame_equal(mine.drop(columns="run_id"), rows.drop(columns="run_id"))
    best = launched.best(max_l0=100)
    again = Producer(producer_spec(plan)).run(Evaluate("synthetic", *to_bytes(best))).metrics
    assert again["mcc"] == pytest.approx(best.cfg.metadata["frontier"]["mcc"], rel=1e-6)
    with pytest.raises(UserError, match="^min_loss_recovered: .*without a language model"):
        launched.best(min_loss_recovered=0.9)
    assert launched.picture is not None and launched.picture.exists()


def test_the_same_sweep_again_trains_nothing(launched: launch.SweepResult, sweep: dict[str, Any], home: Path) -> None:
    again = run(sweep, home)
    assert again.forward_ratio != again.forward_ratio  # NaN: nothing was made
    pd.testing.assert_series_equal(again.frontier()["mcc"], launched.frontier()["mcc"])


def test_an_sae_from_elsewhere_is_compared_on_the_same_rows(launched: launch.SweepResult, tmp_path: Path) -> None:
    theirs = near_identity(tmp_path / "theirs", 16, 0.05, "synthetic")
    rows = gsae_ray.evaluate(
        theirs,
        "synthetic",
        "synthetic",
        launch=launched.launch_id,
        tracking_uri=launched.tracking_uri,
        storage=launched.storage,
        console=Console(quiet=True),
    )
    row = rows.iloc[0]
    assert 0 < row["mcc"] < 1 and row["loss_recovered"] != row["loss_recovered"] and row["l0_low"] < row["l0"]
    shown = dataclasses.replace(launched, mirrored=False).frontier()
    assert row["origin"] in set(shown["origin"])


def test_what_is_published_says_what_there_is(launched: launch.SweepResult, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    gsae_ray.push("synthetic", "owner/synthetic", tracking_uri=launched.tracking_uri, dry_run=folder)
    card = (folder / "README.md").read_text()
    assert "of synthetic activations of gsae-ray" in card and "explained variance" in card
    assert "loss recovered" not in card and "| mcc |" in card and "base_model" not in card
