"""The mirror survives a server that fails, and catches up."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from mirrors import LAUNCH_ID, TRIALS, Server, append, fail_in_call, pair
from mlflow.tracking import MlflowClient
from servers import free_ports
from trials import REQUEST, finish

from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.background import MirrorThread
from gsae_ray.tracking.experiment import make_experiment
from gsae_ray.tracking.mirror import Mirror


def test_the_mirror_survives_whatever_the_server_does_and_catches_up(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 2)
    mirror = server.mirror()
    thread = MirrorThread(mirror, [Trial(trial, directory)])
    assert thread.attempt()
    server.client.delete_experiment(mirror.experiment_id)
    append(directory, 3, 4)
    assert not thread.attempt()
    assert thread.last_error
    assert "\n" not in thread.last_error
    append(directory, 5)
    assert not thread.attempt()
    server.client.restore_experiment(mirror.experiment_id)
    finish(directory, trial)
    assert thread.attempt()
    assert thread.last_error is None
    assert server.steps() == [64 * step for step in range(1, 6)]
    assert server.run().info.status == "FINISHED"


@pytest.mark.parametrize("how", ["the trial's", "the launch's"])
def test_a_run_that_was_deleted_is_made_again_with_all_that_it_had(server: Server, tmp_path: Path, how: str) -> None:
    trial, directory = pair(tmp_path, 2)
    mirror = server.mirror()
    thread = MirrorThread(mirror, [Trial(trial, directory)])
    assert thread.attempt()
    if how == "the trial's":
        server.client.delete_run(server.run().info.run_id)
    else:
        server.client.delete_run(mirror.parent_id)
        thread.mirror = server.mirror()
    append(directory, 3)
    thread.attempt()
    finish(directory, trial)
    assert thread.attempt()
    assert server.steps() == [64, 128, 192]
    (parent,) = server.runs("launch")
    assert server.run().data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert server.run().info.status == "FINISHED"


@pytest.mark.parametrize("age_s", [3600, -3600], ids=["older", "newer"])
def test_of_two_runs_of_a_trial_one_stays_and_has_everything(server: Server, tmp_path: Path, age_s: int) -> None:
    trial, directory = pair(tmp_path, 2)
    thread = MirrorThread(server.mirror(), [Trial(trial, directory)])
    assert thread.attempt()
    run = server.run()  # another is made by a request that had been given up, and that the server carries out late
    server.client.create_run(run.info.experiment_id, run.info.start_time - 1000 * age_s, run.data.tags)
    finish(directory, trial)
    assert thread.attempt() or thread.attempt()
    assert server.steps() == [64, 128]
    assert server.run().info.status == "FINISHED"


def test_a_trial_that_the_server_refuses_does_not_hold_up_the_others(server: Server, tmp_path: Path) -> None:
    pairs = [pair(tmp_path, 2, trial) for trial in TRIALS[:2]]
    refused = dataclasses.replace(TRIALS[0], hyperparameters={"no name for MLflow: *": 1})
    thread = MirrorThread(server.mirror(), [Trial(refused, pairs[0][1]), pairs[1]])
    assert not thread.attempt()
    assert thread.last_error
    assert 128 in [point.step for run in server.runs() for point in run.data.to_proto().metrics]


def test_an_experiment_that_another_sweep_makes_at_the_same_moment_is_shared(server: Server) -> None:
    mirror = server.mirror()
    assert make_experiment(mirror.client, server.experiment).experiment_id == mirror.experiment_id


def test_the_mirror_survives_a_server_that_is_gone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trial, directory = pair(tmp_path, 2)
    mirror = server.mirror()
    thread = MirrorThread(mirror, [Trial(trial, directory)])
    client, mirror.client = mirror.client, MlflowClient(f"http://127.0.0.1:{free_ports(1)[0]}")
    assert not thread.attempt()
    mirror.client = client
    assert thread.attempt()
    assert server.steps() == [64, 128]


@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("again", ["the same mirror", "another mirror"])
def test_a_run_is_whole_after_a_failure_in_any_call(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, again: str
) -> None:
    trial, directory = pair(tmp_path)
    # Calls that log: the parameters, then 13 metrics a row in two calls, the first of which ends within a row.
    append(directory, *range(1, 76), **{f"train/{i}": float(i) for i in range(11)})
    mirror = server.mirror()
    monkeypatch.setattr(mirror.client, "log_batch", fail_in_call(mirror.client.log_batch, number))
    arrived = MirrorThread(mirror, [Trial(trial, directory)]).attempt()
    assert arrived == (number == 4)
    if again == "another mirror":
        mirror = server.mirror()
    assert MirrorThread(mirror, [Trial(trial, directory)]).attempt()
    run = server.run()
    assert {"architecture", "site", "lr", "l1_coefficient"} <= run.data.params.keys()
    assert len(run.data.metrics) == 13
    for name in run.data.metrics:
        assert [step for step, _, _ in server.history(run, name)] == [64 * step for step in range(1, 76)]


def test_a_launch_is_whole_after_a_failure_when_it_began(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(server.uri, server.experiment, LAUNCH_ID, REQUEST)
    monkeypatch.setattr(mirror.client, "log_batch", fail_in_call(mirror.client.log_batch, 1))
    with pytest.raises(ConnectionError):
        mirror.open_launch("small", {"model": "builtin", "trials": 3})
    server.mirror()
    (parent,) = server.runs("launch")
    assert parent.data.params == {"model": "builtin", "trials": "3"}


def test_the_thread_sends_while_trials_train_and_the_rest_when_they_end(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 1)
    thread = MirrorThread(server.mirror(), [Trial(trial, directory)], interval_s=0.02)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.runs() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.runs()
    append(directory, 2, 3)
    finish(directory, trial)
    assert thread.finish()
    assert not thread.is_alive()
    assert server.steps() == [64, 128, 192]
    assert server.run().info.status == "FINISHED"


def test_an_experiment_that_was_deleted_is_used_again(server: Server, tmp_path: Path) -> None:
    mirror = server.mirror()
    server.client.delete_experiment(mirror.experiment_id)
    server.mirror().sync([pair(tmp_path, 1)])
    assert server.steps() == [64]
