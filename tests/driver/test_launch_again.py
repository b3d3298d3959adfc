"""The same sweep again: what is done stays, what was added, damaged or interrupted is made."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from damage import flip
from golden import SHORT, parent_run, run
from mlflow.tracking import MlflowClient
from mlflow_stores import new_store
from producers import tokens_of
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from rich.console import Console

import gsae_ray
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import begin, launch, publish
from gsae_ray.driver import trials as driver_trials
from gsae_ray.driver.prepare import PreparedSweep
from gsae_ray.driver.references import evaluate_reference
from gsae_ray.errors import SweepStoppedError, UserError
from gsae_ray.evaluation import metrics
from gsae_ray.results import sequences
from gsae_ray.results.comparison import own_saes
from gsae_ray.storage.driver_lock import driver_lock
from gsae_ray.storage.event_log import EventLog
from gsae_ray.storage.trial_directory import TrialDirectory


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    return SHORT


def test_what_resume_refuses_is_refused_before_ray_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(begin, "connected", lambda _: pytest.fail("Ray is started"))
    with pytest.raises(UserError, match="^--resume: no launch of 'golden' in "):
        run(SHORT, tmp_path, resume=True)
    assert not list(tmp_path.glob("runs/golden")), "nothing stays"


def test_a_launch_that_goes_on_says_so(tmp_path: Path) -> None:
    shown: list[str] = []
    log = EventLog(tmp_path / "events.jsonl", shown.append)
    for left in (4, 1):
        with log.session(f"{left} of 4 trials to train"):
            pass
    assert shown == [f"launch {tmp_path.name} goes on: 1 of 4 trials to train"]
    events = [json.loads(line)["event"] for line in log.path.read_text().splitlines()]
    assert events == ["begins: 4 of 4 trials to train", "ends", *shown, "ends"]


PURSUED = {**SHORT, "evaluation": {"tokens": 1024, "pursuit_l0": [8]}}
GROWN = {
    **SHORT,
    "saes": [{**SHORT["saes"][0], "l1_coefficient": [4, 8]}, *SHORT["saes"][1:]],
    "evaluation": {"tokens": 1024, "pursuit_l0": [8, 32]},
}


class Extended(NamedTuple):
    """The sweep twice more: on other held-out tokens with a target of pursuit, then with another and one λ more.

    The second time with a finished SAE as a reference, and under a scheduler of Tune that stops no trial. It finds its
    metric in every result, the last ones too: Tune itself checks that here.
    """

    first: launch.SweepResult
    second: launch.SweepResult
    resumed: launch.SweepResult
    """The second again, with --resume, though its file names no reference now."""
    kept: dict[Path, int]
    """Finished SAEs and their evaluations -> when each was written; as they were before the second."""


def without(folder: Path, *arguments: Any) -> None:
    """Evaluates a reference, when a folder has gone."""
    shutil.rmtree(folder, ignore_errors=True)
    evaluate_reference(*arguments)


@pytest.fixture(scope="module")
def extended(launched: launch.SweepResult, home: Path) -> Extended:
    assert len(launched.frontier()) == 4
    trained = {p: p.stat().st_mtime_ns for p in (home / "runs/golden/trials").glob("*/DONE")}
    first = run(PURSUED, home)
    evaluated = {p: p.stat().st_mtime_ns for p in (home / "runs/golden/trials").glob("*/evaluations/*")}
    asha = ASHAScheduler("tokens", "train/loss", "min", max_t=10**9, grace_period=10**8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_DISABLE_STRICT_METRIC_CHECKING", "0")
        patch.setattr(tune, "TuneConfig", functools.partial(tune.TuneConfig, scheduler=asha))
        finished, another = (path.parent for path in sorted(trained)[:2])
        shutil.copytree(another / "sae", home / "gone")
        references = [
            {"source": str(finished), "name": "a copy"},
            {"source": str(home / "gone"), "name": "one that is gone"},
        ]
        references = [{**reference, "site": "blocks.1.hook_resid_post"} for reference in references]
        patch.setattr(driver_trials, "evaluate_reference", functools.partial(without, home / "gone"))
        second = run({**GROWN, "references": references}, home)
    return Extended(first, second, run(GROWN, home, resume=True), trained | evaluated)


@pytest.mark.slow
def test_trials_run_under_a_scheduler_of_tune(extended: Extended) -> None:
    assert extended.second.failures == {} and len(own_saes(extended.second.frontier())) == 6


@pytest.mark.slow
def test_a_reference_of_a_sweep_file_is_evaluated_by_its_producers_as_its_own_saes_are(
    extended: Extended, home: Path
) -> None:
    result = extended.second
    rows = result.frontier("blocks.1.hook_resid_post").set_index("origin")
    reference, own = rows.loc["a copy"], rows.loc["own"]
    (same,) = (row for _, row in own.iterrows() if row["l0"] == reference["l0"])
    assert all(same[name] == reference[name] for name in metrics.columns() if name not in metrics.TRAINING)
    assert own["on_frontier"].any() and not reference["on_frontier"]
    sums = [sequences(row["run_id"], result.tracking_uri) for row in (same, reference)]
    assert all(np.array_equal(sums[0][name], sums[1][name]) for name in sums[0])
    written = pd.read_csv(home / "runs/golden/launches" / result.launch_id / "frontier.csv")
    assert written["origin"].tolist().count("a copy") == 1
    assert "one that is gone" not in written["origin"].tolist()
    events = (home / "runs/golden/launches" / result.launch_id / "events.jsonl").read_text()
    assert "reference one that is gone is left out: " in events
    assert "a copy" in set(extended.resumed.frontier()["origin"]), "what a launch was compared with stays"
    assert set(extended.first.frontier()["origin"]) == {"own"}
    assert (
        gsae_ray.best(
            "golden",
            site="blocks.1.hook_resid_post",
            max_l0=1e9,
            launch=result.launch_id,
            tracking_uri=result.tracking_uri,
        ).cfg.metadata["frontier"]["origin"]
        == "own"
    )


@pytest.mark.slow
def test_one_lambda_more_trains_only_its_trials(extended: Extended, home: Path) -> None:
    trials = sorted((home / "runs/golden/trials").iterdir())
    assert len(trials) == 6
    assert {path: path.stat().st_mtime_ns for path in extended.kept} == extended.kept
    attempts = {TrialDirectory(path).newest_attempt for path in trials}
    assert attempts == {1}
    grown = extended.second
    rows = gsae_ray.frontier("golden", launch=grown.launch_id, tracking_uri=grown.tracking_uri)
    assert len(own_saes(rows)) == 6
    merged = rows.merge(extended.first.frontier(), on="trial")
    assert list(merged["loss_recovered_x"]) == list(merged["loss_recovered_y"])


@pytest.mark.slow
def test_pursuit_and_one_target_more_cost_only_their_evaluations(extended: Extended) -> None:
    evaluations = [parent_run(result).data.metrics["evaluations"] for result in (extended.first, extended.second)]
    assert evaluations == [4 * 2, 4 + 2 * 3 + 1], "of each SAE as itself and at each target, what was not there"
    resumed = extended.resumed
    assert resumed.launch_id == extended.second.launch_id
    own, rows = own_saes(resumed.frontier()), resumed.frontier(encoder="pursuit")
    before = extended.first.frontier().set_index("trial")[metrics.columns()]
    pd.testing.assert_frame_equal(own.set_index("trial").loc[before.index, metrics.columns()], before)
    assert sorted(rows["pursuit_l0"]) == [8] * 6 + [32] * 6
    assert (rows["l0"] <= rows["pursuit_l0"]).all() and (rows["l0"] > 0.9 * rows["pursuit_l0"]).all()
    assert rows["loss_recovered"].between(0.5, 1.01).all()
    client = MlflowClient(resumed.tracking_uri)
    for run_id in own["run_id"]:
        steps = [m.step for m in client.get_metric_history(run_id, "pursuit/kl")]
        assert sorted(steps) == [8, 32], "in whichever order they were evaluated"
    assert "pursuit.csv" in {item.path for item in client.list_artifacts(parent_run(resumed).info.run_id)}


@pytest.mark.slow
def test_other_held_out_tokens_cost_an_evaluation_not_a_training(extended: Extended, home: Path) -> None:
    result = extended.first
    assert len(result.frontier()) == 4
    assert result.forward_ratio != result.forward_ratio  # nothing was produced
    run(SHORT, home)
    with pytest.raises(UserError, match="different tokens"):
        gsae_ray.frontier("golden", launch="all", tracking_uri=result.tracking_uri)


@pytest.mark.slow
@pytest.mark.usefixtures("launched")
def test_resume_finds_the_launch_and_refuses_a_changed_sweep(home: Path) -> None:
    newest = sorted((home / "runs/golden/launches").iterdir())[-1].name
    sweep = json.loads((home / "runs/golden/launches" / newest / "launch.json").read_text())["sweep"]
    with pytest.raises(UserError, match="training.batch_size"):
        run({**sweep, "training": {**sweep["training"], "batch_size": 256}}, home, resume=True)
    assert run(sweep, home, resume=True).launch_id == newest


@pytest.mark.slow
def test_finished_work_that_is_damaged_is_made_again_as_it_was_and_nothing_else_is(
    launched: launch.SweepResult, plan: PreparedSweep, home: Path, tmp_path: Path
) -> None:
    shutil.copytree(home / "runs", tmp_path / "runs")
    whole, flipped, unmeasured, gone = (tmp_path / "runs/golden/trials" / t.directory_name for t in plan.trials)
    flip(flipped / "sae/sae_weights.safetensors")
    for path in (unmeasured / "evaluations").iterdir():
        path.write_text("{}")
    shutil.rmtree(gone / "sae")
    block = f"tokens/{tokens_of(plan).blocks_directory.name}/block-00001.safetensors"
    flip(tmp_path / "runs" / block)
    told = io.StringIO()
    sweep, uri = Sweep.model_validate(SHORT), new_store(tmp_path)
    result = launch.run(
        sweep, storage=tmp_path / "runs", tracking_uri=uri, console=Console(file=told, width=1000), resume=False
    )
    assert result.failures == {}
    assert "1 of 4 trials are done already" in told.getvalue()
    for path in (flipped / "sae/sae_weights.safetensors", gone / "sae/cfg.json"):
        assert f"{path}: this file is damaged; the same command trains this SAE again\n" in told.getvalue()
    for folder in (whole, flipped, unmeasured, gone):
        name = "sae/sae_weights.safetensors"
        assert (folder / name).read_bytes() == (home / "runs/golden/trials" / folder.name / name).read_bytes()
        assert TrialDirectory(folder).newest_attempt == (1 if folder in (whole, unmeasured) else 2)
    assert (tmp_path / "runs" / block).read_bytes() == (home / "runs" / block).read_bytes()
    columns = ["trial", "l0", "loss_recovered", "gamma"]
    pd.testing.assert_frame_equal(result.frontier()[columns], launched.frontier()[columns])


@pytest.mark.slow
def test_resume_keeps_the_overrides_that_the_launch_was_begun_with(
    launched: launch.SweepResult, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps({**SHORT, "training": {**SHORT["training"], "lr": 5e-4}}))
    options: dict[str, Any] = {"storage": home / "runs", "tracking_uri": launched.tracking_uri}
    options["console"] = Console(quiet=True)
    begun = launch.run(file, overrides=["training.lr=1e-3"], **options)
    assert launch.run(file, resume=True, **options).launch_id == begun.launch_id
    assert launch.run(file, resume=True, overrides=["producers.count=1"], **options).launch_id == begun.launch_id
    with pytest.raises(UserError, match=f"since launch {begun.launch_id}: training.lr; change it back"):
        launch.run(file, resume=True, overrides=["training.lr=5e-4"], **options)


@pytest.mark.slow
@pytest.mark.usefixtures("launched")
def test_a_file_system_that_fails_in_mid_launch_is_no_mistake_but_an_interruption(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What starts a command again looks at its exit code."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "a file")

    with (
        monkeypatch.context() as broken,
        pytest.raises(SweepStoppedError, match="^a file: Input/output error; .*--resume"),
    ):
        broken.setattr(publish, "finish_launch", fail)
        run(SHORT, home)
    newest = max(path.name for path in (home / "runs/golden/launches").iterdir())
    assert run(SHORT, home, resume="auto").launch_id == newest


@pytest.mark.slow
def test_auto_begins_another_launch_where_the_newest_is_finished(launched: launch.SweepResult, home: Path) -> None:
    result = run({**SHORT, "name": "golden"}, home, resume="auto")
    assert result.launch_id > launched.launch_id and len(result.frontier()) == 4
    assert result.forward_ratio != result.forward_ratio, "nothing was produced"


@pytest.mark.slow
def test_snapshots_that_are_asked_for_too_late_are_told_in_one_line_and_train_nothing_again(
    launched: launch.SweepResult, home: Path
) -> None:
    trained = {path: path.stat().st_mtime_ns for path in (home / "runs/golden/trials").glob("*/DONE")}
    told = io.StringIO()
    sweep = Sweep.model_validate({**SHORT, "training": {**SHORT["training"], "snapshots_at": [10_000]}})
    options: dict[str, Any] = {"storage": home / "runs", "tracking_uri": launched.tracking_uri}
    result = launch.run(sweep, console=Console(file=told, width=1000), **options)
    assert told.getvalue().count("training.snapshots_at: 4 of 4 trials have come past a snapshot") == 1
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert len(result.frontier()) == 4 and not result.frontier(tokens="all")["snapshot"].any()
    with pytest.raises(UserError, match="training.snapshots_at"):
        run(SHORT, home, resume=True)


@pytest.mark.slow
@pytest.mark.usefixtures("launched")
def test_a_second_driver_of_the_same_sweep_is_refused(home: Path) -> None:
    with driver_lock(home / "runs/golden"), pytest.raises(UserError, match=f"process {os.getpid()}"):
        run(SHORT, home)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.slow
def test_rescale_and_shift_takes_the_sae_of_a_run_as_its_parent(launched: launch.SweepResult, home: Path) -> None:
    rows = launched.frontier()
    site = "blocks.1.hook_resid_post"
    of_site = rows[rows["site"] == site].set_index("architecture")
    parent = of_site.loc["standard"]
    entry = {"architecture": "rescale_shift", "widths": [384], "parent": parent["run_id"], "tokens": 20_000}
    sweep = {**SHORT, "name": "adopted", "saes": [entry], "sites": {"layers": [1], "points": ["resid_post"]}}
    result = run(sweep, home)
    (row,) = result.frontier().to_dict("records")
    assert row["sparsity"] == parent["sparsity"] and row["gamma"] > parent["gamma"]

    for change, message in [
        ({"widths": [256]}, "saes.0.parent: .* has d_sae 384; this rescale_shift trial needs 256"),
        ({"parent": of_site.loc["gated"]["run_id"]}, "saes.0.parent: .* has architecture gated; .* needs standard"),
        ({"parent": "0" * 32}, "parent: the SAE of run 0+ cannot be fetched"),
    ]:
        with pytest.raises(UserError, match=message):
            run({**sweep, "saes": [{**entry, **change}]}, home)
    with pytest.raises(UserError, match="has site blocks.1.hook_resid_post; .* needs blocks.2.hook_resid_post"):
        run({**sweep, "sites": {"layers": [2], "points": ["resid_post"]}}, home)
