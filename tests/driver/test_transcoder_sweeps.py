"""A sweep of transcoders beside SAEs: the laws hold for two sites in step, and neither is compared with the other."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from faults import TOKENS, Home, Outcome, assert_undisturbed, disturbed, processes, send
from golden import ONE_PRODUCER, parent_run
from mlflow.tracking import MlflowClient

import gsae_ray
from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.driver import launch
from gsae_ray.driver.prepare import PreparedSweep, producer_spec
from gsae_ray.errors import UserError
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.saes import to_bytes
from gsae_ray.training.trainer import Trainer

pytestmark = pytest.mark.slow

IN, OUT = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
SITE = f"{IN}:hook_mlp_out"
TARGET = {"target": {"point": "mlp_out"}}
SWEEP: dict[str, Any] = {
    **ONE_PRODUCER,
    "name": "transcoders",
    "sites": {"layers": [1], "points": ["mlp_in", "mlp_out"]},
    "saes": [
        {"architecture": "standard", "widths": [256], "l1_coefficient": 1, **TARGET, "skip": [False, True]},
        {"architecture": "batchtopk", "widths": [256], "k": 16, **TARGET},
        {"architecture": "gated", "widths": [256], "l1_coefficient": 2, "sites": {"points": ["mlp_out"]}},
    ],
    "training": {"tokens": 24_000, "batch_size": 128, "lr": 1e-3, "log_every_tokens": 2_560},
    "evaluation": {"tokens": 2048},
}
for _entry in SWEEP["saes"][:2]:
    _entry["sites"] = {"points": ["mlp_in"]}


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    return SWEEP


def test_transcoders_are_trained_and_evaluated_apart_from_saes(launched: launch.SweepResult) -> None:
    assert launched.failures == {}
    rows = launched.frontier()
    assert dict(rows.groupby("site").size()) == {OUT: 1, SITE: 3}
    of_transcoders = rows[rows["site"] == SITE]
    assert sorted(of_transcoders["variant"]) == ["skip transcoder", "transcoder", "transcoder"]
    assert of_transcoders["fvu"].between(0.01, 0.6).all() and of_transcoders["loss_recovered"].between(0.4, 1).all()
    assert rows[rows["site"] == OUT]["on_frontier"].all(), "none competes with a transcoder"
    zero = rows.groupby("site")["ce_zero"].first()
    assert abs(zero[SITE] - zero[OUT]) < 0.05, "what is ablated is the target"


@pytest.mark.usefixtures("launched")
def test_law_2_a_transcoder_in_a_sweep_is_the_one_alone_bit_for_bit(plan: PreparedSweep, home: Path) -> None:
    producer = Producer(producer_spec(plan))
    for trial in plan.trials:
        trainer = Trainer(trial, RowStream.of(LocalBlockReader(producer, *trial.sites), plan.layout, trial.sites))
        while not trainer.done:
            trainer.train_interval()
        alone = trainer.finished_sae({})
        folder = home / "runs/transcoders/trials" / trial.directory_name
        assert to_bytes(alone)[1] == to_bytes(gsae_ray.load(folder / "sae"))[1], trial.name
        evaluation = producer.run(Evaluate(trial.site, *to_bytes(alone)))
        (file,) = (folder / "evaluations").glob("*.json")
        assert json.loads(file.read_text())["metrics"]["eval/fvu"] == evaluation.metrics["fvu"]


def test_law_3_one_forward_for_both_sites(launched: launch.SweepResult, plan: PreparedSweep) -> None:
    assert launched.forward_ratio == 1.0
    assert parent_run(launched).data.metrics["rows_produced"] == sum(plan.layout.rows)
    assert set(plan.layout.widths) == {IN, OUT}


def test_a_run_says_where_it_reads_and_writes_and_its_transcoder_is_fetched_by_that(
    launched: launch.SweepResult,
) -> None:
    rows = launched.frontier()
    row = rows[rows["variant"] == "skip transcoder"].iloc[0]
    params = MlflowClient(launched.tracking_uri).get_run(row["run_id"]).data.params
    assert (params["site"], params["point"], params["target"]) == (SITE, "mlp_in:mlp_out", OUT)
    assert (params["skip"], params["d_out"], params["variant"]) == ("True", "128", "skip transcoder")
    sae = gsae_ray.best("transcoders", site=SITE, max_l0=1000, tracking_uri=launched.tracking_uri)
    assert sae.cfg.is_transcoder and (sae.cfg.site, sae.cfg.target, sae.cfg.place) == (IN, OUT, SITE)
    with pytest.raises(UserError, match="this sweep has 2, name one"):
        gsae_ray.best("transcoders", max_l0=1000, tracking_uri=launched.tracking_uri)


def test_a_transcoder_from_elsewhere_is_shown_beside_them_and_an_sae_is_refused_there(
    launched: launch.SweepResult, home: Path, tmp_path: Path
) -> None:
    rows = launched.frontier()
    where: dict[str, Any] = {"tracking_uri": launched.tracking_uri, "storage": home / "runs"}
    for site, name in ((SITE, "transcoder"), (OUT, "sae")):
        found = rows[rows["site"] == site].iloc[0]
        gsae_ray.best("transcoders", site=site, max_l0=1000, tracking_uri=launched.tracking_uri).save(tmp_path / name)
        shown = gsae_ray.evaluate(str(tmp_path / name), "transcoders", site, **where)
        assert shown.iloc[0]["site"] == site and found["site"] == site
    with pytest.raises(
        UserError, match="this is an SAE, trained at 'blocks.1.hook_mlp_out'; give a site for one point"
    ):
        gsae_ray.evaluate(str(tmp_path / "sae"), "transcoders", SITE, **where)
    with pytest.raises(UserError, match=f"is of one place, and this is a transcoder, trained at '{SITE}'"):
        gsae_ray.evaluate(str(tmp_path / "transcoder"), "transcoders", OUT, **where)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("kind", ["trial", "StoreActor"])
def test_law_5_whatever_is_killed_the_transcoders_are_the_same(kind: str, tmp_path: Path) -> None:
    long = {"tokens": TOKENS, "log_every_tokens": 2_560, "checkpoint_every_tokens": 10_240}
    sweep = {**SWEEP, "saes": SWEEP["saes"][:2], "training": {**SWEEP["training"], **long}}
    quiet, home = Home(tmp_path / "quiet", sweep), Home(tmp_path / "disturbed", sweep)
    assert quiet.run().failures == {}

    def strike(trial: str) -> None:
        if kind == "trial":
            os.kill(home.pid(trial), signal.SIGKILL)
        else:
            send(signal.SIGKILL, processes(kind))

    with disturbed(home, 0.4, strike):
        result = home.run()
    assert result.failures == {} and result.forward_ratio == 1.0
    assert_undisturbed(home, Outcome.of(quiet))
