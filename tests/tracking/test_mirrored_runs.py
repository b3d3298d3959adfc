"""What the runs of a launch and of its trials say, and when they have ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage import flip
from mirrors import LAUNCH_ID, ONE, TRIALS, Server, append, fail_in_call, pair
from trials import FINGERPRINT, SITE_1, evaluation, expand, finish, finish_with_snapshots, logged, random_sae

from gsae_ray import saes
from gsae_ray.saes import to_bytes
from gsae_ray.saes.folder import content_hash
from gsae_ray.storage.evaluations import Snapshot
from gsae_ray.storage.trial_directory import Trial, TrialDirectory, forget_damaged
from gsae_ray.tracking.artifacts import download_sae, download_sequences
from gsae_ray.tracking.tags import EVALUATION, FAILURE, IDENTITY, KIND, LAUNCH, SNAPSHOT, SWEEP, TRIAL


def test_runs_carry_flat_params_and_tags_and_nest_under_their_launch(server: Server, tmp_path: Path) -> None:
    (trial,) = expand("standard", layers=(1,), l1_coefficient=0.5, seeds=[3], lr=5e-4)
    mirror = server.mirror()
    mirror.sync([pair(tmp_path, 1, trial)])
    (parent,) = server.runs("launch")
    assert parent.info.run_id == mirror.parent_id
    assert parent.data.params == {"model": "builtin", "trials": "3"}
    expected = {LAUNCH: LAUNCH_ID, KIND: "launch", SWEEP: "small", EVALUATION: FINGERPRINT}
    assert expected.items() <= parent.data.tags.items()
    run = server.run()
    assert run.info.run_name == trial.name
    expected = {LAUNCH: LAUNCH_ID, KIND: "trial", TRIAL: trial.name, IDENTITY: trial.identity}
    assert (expected | {EVALUATION: FINGERPRINT}).items() <= run.data.tags.items()
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    expected = {"architecture": "standard", "recipe": "norm_weighted/modern", "variant": "", "d_in": "8"}
    expected |= {"d_sae": "16", "l1_coefficient": "0.5"}
    expected |= {"site": SITE_1, "layer": "1", "point": "resid_post", "lr": "0.0005", "seed": "3"}
    expected |= {"tokens": "1024", "batch_size": "64"}
    assert expected.items() <= run.data.params.items()
    assert not [value for value in run.data.params.values() if value.startswith("{")], "flat"


def test_a_trial_is_finished_when_it_is_evaluated_and_its_sae_is_there(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 2)
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])
    directory.finish(random_sae(trial))
    mirror.sync([Trial(trial, directory)])
    assert server.run().info.status == "RUNNING"
    directory.save_evaluation("e" * 64, 1024, evaluation(l0=99))  # on other tokens than this launch's
    mirror.sync([Trial(trial, directory)])
    assert server.run().info.status == "RUNNING"
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=20))
    mirror.sync([Trial(trial, directory)])
    run = server.run()
    assert run.info.status == "FINISHED"
    assert logged(evaluation(l0=20)).items() <= run.data.metrics.items()
    assert server.steps("eval/l0") == [1024]
    fetched = download_sae(mirror.client, run.info.run_id, tmp_path / "fetched")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (fetched / name).read_bytes() == (directory.path / "sae" / name).read_bytes()
    assert saes.load(fetched).cfg.site == SITE_1


def test_the_sums_of_each_context_go_with_the_sae(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 2)
    finish(directory, trial, pursuit={4: evaluation(l0=3.5)})
    mirror = server.mirror(encoders=(None, 4))
    mirror.sync([Trial(trial, directory)])
    run_id = server.run().info.run_id
    assert download_sequences(mirror.client, run_id, None) == evaluation().sequences
    assert download_sequences(mirror.client, run_id, 4) == evaluation(l0=3.5).sequences


def test_pursuit_is_a_curve_of_its_own_over_target_l0_and_arrives_once(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 2)
    finish(directory, trial, pursuit={4: evaluation(l0=3.5, loss_recovered=0.7)})
    encoders = (None, 4, 16)
    first = server.mirror(encoders=encoders)
    first.sync([Trial(trial, directory)])
    assert server.run().info.status == "RUNNING", "one of the evaluations is still to come"
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=15, loss_recovered=0.9), 16)
    killed = server.mirror(encoders=encoders)
    killed.client.set_terminated = fail_in_call(killed.client.set_terminated, 1)  # everything sent, and not yet said
    with pytest.raises(ConnectionError):
        killed.sync([Trial(trial, directory)])
    for _ in range(2):
        resumed = server.mirror(encoders=encoders)
        resumed.sync([Trial(trial, directory)])
    run = server.run()
    assert run.info.status == "FINISHED"
    values = {name: [(step, value) for step, _, value in server.history(run, name)] for name in run.data.metrics}
    assert values["pursuit/l0"] == [(4, 3.5), (16, 15)]
    assert values["pursuit/loss_recovered"] == [(4, 0.7), (16, 0.9)]
    assert values["pursuit/gamma"] == [(4, 1), (16, 1)]
    assert values["eval/l0"] == [(1024, 20)]
    assert server.steps() == [64, 128]


def test_snapshots_are_a_curve_over_tokens_and_their_files_arrive_once(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 2)
    directory.keep_snapshot(128, lambda: random_sae(trial, seed=2))
    finish_with_snapshots(directory, trial, {64: evaluation(l0=35)})
    asked = (64, 128, 512)
    server.mirror(snapshots=asked).sync([Trial(trial, directory)])
    assert server.run().info.status == "RUNNING", "one of the evaluations is still to come"
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=30), Snapshot(128))
    killed = server.mirror(snapshots=asked)
    killed.client.set_terminated = fail_in_call(killed.client.set_terminated, 1)
    with pytest.raises(ConnectionError):
        killed.sync([Trial(trial, directory)])
    for _ in range(2):
        mirror = server.mirror(snapshots=asked)
        mirror.sync([Trial(trial, directory)])
    run = server.run()
    assert run.info.status == "FINISHED"
    assert [(step, value) for step, _, value in server.history(run, "snapshot/l0")] == [(64, 35), (128, 30)]
    assert server.steps("eval/l0") == [1024]
    for tokens, seed in ((64, 64), (128, 2)):
        fetched = download_sae(mirror.client, run.info.run_id, tmp_path / f"fetched-{tokens}", tokens)
        assert run.data.tags[f"{SNAPSHOT}{tokens}"] == content_hash(fetched)
        assert to_bytes(saes.load(fetched)) == to_bytes(random_sae(trial, seed))
    assert download_sequences(mirror.client, run.info.run_id, Snapshot(64)) == evaluation(l0=35).sequences


def test_a_damaged_snapshot_fails_its_run_in_one_line(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 2)
    finish_with_snapshots(directory, trial, {64: evaluation(l0=35)})
    flip(directory.path / "snapshots/64/sae_weights.safetensors")
    mirror = server.mirror(snapshots=[64])
    mirror.sync([Trial(trial, directory)])
    assert server.run().info.status == "FAILED" and "these files are damaged" in mirror.damaged[trial.name]
    assert len(forget_damaged([directory])) == 1
    server.mirror(snapshots=[64]).sync([Trial(trial, directory)])
    assert server.run().info.status == "FINISHED", "the next launch goes on without it"


def test_a_failed_trial_has_status_failed_and_the_reason(server: Server, tmp_path: Path) -> None:
    reason = "the loss is not finite after 640 tokens; a lower lr may help"
    nan, crashed = pair(tmp_path, 2), pair(tmp_path, 1, TRIALS[1])
    nan[1].fail(reason)
    mirror = server.mirror()
    mirror.sync([nan, crashed])
    mirror.fail(TRIALS[1], "its process died")
    runs = {run.data.tags[TRIAL]: run for run in server.runs()}
    assert {run.info.status for run in runs.values()} == {"FAILED"}
    assert runs[ONE.name].data.tags[FAILURE] == reason
    assert runs[TRIALS[1].name].data.tags[FAILURE] == "its process died"


def test_a_trial_that_failed_and_then_finished_says_nothing_of_its_failure(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 2)
    directory.fail("NaN")
    server.mirror().sync([Trial(trial, directory)])
    directory.forget_failure()
    finish(directory, trial)
    server.mirror().sync([Trial(trial, directory)])
    run = server.run()
    assert run.info.status == "FINISHED"
    assert FAILURE not in run.data.tags


def test_a_trial_that_has_not_begun_has_no_run(server: Server, tmp_path: Path) -> None:
    server.mirror().sync([Trial(ONE, TrialDirectory(tmp_path / "nothing"))])
    assert server.runs() == []


def test_metrics_that_are_not_finite_are_left_out(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    append(directory, 1, 2, **{"train/nan": float("nan"), "train/inf": float("inf"), "train/minus": -float("inf")})
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])
    mirror.log_launch({"forward_ratio": float("nan"), "evaluations": 3.0})
    assert server.run().data.metrics.keys() == {"train/loss", "train/l0"}
    assert server.runs("launch")[0].data.metrics == {"evaluations": 3.0}


def test_a_launch_carries_its_files_and_ends_with_its_unfinished_trials(server: Server, tmp_path: Path) -> None:
    pairs = [pair(tmp_path, 1, trial) for trial in TRIALS[:2]]
    finish(pairs[0][1], pairs[0][0])
    (tmp_path / "sweep.yaml").write_text("name: small\n")
    mirror = server.mirror()
    mirror.sync(pairs)
    mirror.log_launch({}, [tmp_path / "sweep.yaml"])
    mirror.close("KILLED")
    (parent,) = server.runs("launch")
    assert parent.info.status == "KILLED"
    assert {run.data.tags[TRIAL]: run.info.status for run in server.runs()} == {
        TRIALS[0].name: "FINISHED",
        TRIALS[1].name: "KILLED",
    }
    assert [file.path for file in server.client.list_artifacts(parent.info.run_id)] == ["sweep.yaml"]
    resumed = server.mirror()
    assert resumed.parent_id == parent.info.run_id
    resumed.sync(pairs)
    assert {run.info.status for run in server.runs()} == {"FINISHED", "RUNNING"}


def test_launches_of_an_experiment_have_runs_of_their_own(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 2)
    for launch_id in ("first", "second"):
        server.mirror(launch_id).sync([Trial(trial, directory)])
    assert len(server.runs("launch")) == len(server.runs()) == 2
    assert all(len(server.history(run, "train/loss")) == 2 for run in server.runs())
