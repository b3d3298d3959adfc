"""The mirror's promise: whatever happens to it or to the server, MLflow ends up with what storage holds, once."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from added_metric import added_metric
from damage import DAMAGES, flip
from mirrors import LAUNCH_ID, ONE, TRIALS, Server, append, pair
from mlflow.tracking import MlflowClient
from servers import free_ports
from trials import FINGERPRINT, REQUEST, SITE_1, begin, evaluation, expand, finish, logged, random_sae

from gsae_ray import saes
from gsae_ray.evaluation.metrics import METRICS
from gsae_ray.results.outcomes import MLflowOutcomes
from gsae_ray.saes.files import content_hash
from gsae_ray.storage.trial_directory import Trial, TrialDirectory
from gsae_ray.tracking.artifacts import download_sae, download_sequences
from gsae_ray.tracking.background import MirrorThread
from gsae_ray.tracking.experiment import make_experiment
from gsae_ray.tracking.mirror import Mirror
from gsae_ray.tracking.tags import CONTENT, EVALUATION, FAILURE, IDENTITY, KIND, LAUNCH, SCHEMA, SWEEP, TRIAL


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow puts the artifacts of an SQLite store into the working directory
        yield f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def server(uri: str) -> Server:
    return Server(uri)


# ---- once -----------------------------------------------------------------------------------------------------------


def test_syncing_again_or_by_another_mirror_changes_nothing(server: Server, tmp_path: Path) -> None:
    pairs = [pair(tmp_path, 5, trial) for trial in TRIALS]
    (_, running), (done, done_directory), (_, failed) = pairs
    finish(done_directory, done)
    failed.fail("NaN")
    mirror = server.mirror()
    mirror.sync(pairs)
    before = server.snapshot()
    assert sorted(run["info"][0] for run in before.values()) == ["FAILED", "FINISHED", "RUNNING", "RUNNING"]
    mirror.sync(pairs)
    assert server.snapshot() == before
    server.mirror().sync(pairs)  # the first one's driver was killed
    after = server.snapshot()
    for run in (*before.values(), *after.values()):
        run["info"] = run["info"][:3]  # when a run ended: see the test below
    assert after == before
    append(running, 6)
    server.mirror().sync(pairs)
    assert len(server.runs()) == 3


def test_a_run_that_has_ended_keeps_its_end_when_a_launch_is_resumed(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 2)
    finish(directory, trial)
    server.mirror().sync([Trial(trial, directory)])
    ended = server.run().info.end_time
    time.sleep(0.01)
    server.mirror().sync([Trial(trial, directory)])
    assert server.run().info.end_time == ended


def test_every_metric_row_arrives_once_with_its_own_time(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 3)
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])
    append(directory, 4, 5)
    mirror.sync([Trial(trial, directory)])
    server.mirror().sync([Trial(trial, directory)])
    append(directory, 6)
    mirror.sync([Trial(trial, directory)])
    rows, _ = directory.rows()
    for name in ("train/loss", "train/l0"):
        expected = [(row["step"], row["timestamp"], row["metrics"][name]) for row in rows]
        assert server.history(server.run(), name) == expected
    assert len(rows) == 6


def test_more_metrics_than_fit_a_call_arrive_once(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    append(directory, *range(1, 161), **{f"train/{i}": float(i) for i in range(10)})
    server.mirror().sync([Trial(trial, directory)])
    run = server.run()
    assert len(run.data.metrics) == 12
    for name in run.data.metrics:
        assert [step for step, _, _ in server.history(run, name)] == [64 * step for step in range(1, 161)]


@pytest.mark.parametrize("again", ["the same mirror", "another mirror"])
def test_rows_cut_back_and_written_again_are_not_doubled(server: Server, tmp_path: Path, again: str) -> None:
    trial, directory = pair(tmp_path, 2)
    directory.checkpoint(128, {}, {})
    append(directory, 3, 4, 5)
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])
    successor = begin(tmp_path, trial)
    successor.newest_state()
    if again == "another mirror":
        mirror = server.mirror()
    mirror.sync([Trial(trial, successor)])
    for step in range(3, 8):
        time.sleep(0.002)  # rows have another timestamp than the first time
        append(successor, step)
        mirror.sync([Trial(trial, successor)])
    assert server.steps() == [64 * step for step in range(1, 8)]
    assert server.steps("train/l0") == server.steps()


def test_a_row_whose_loss_was_not_finite_is_not_doubled_when_it_is_written_again(
    server: Server, tmp_path: Path
) -> None:
    trial, directory = pair(tmp_path, 2)
    append(directory, 3, **{"train/loss": float("nan")})
    server.mirror().sync([Trial(trial, directory)])
    successor = begin(tmp_path, trial)
    successor.newest_state()
    time.sleep(0.002)
    append(successor, 1, 2, 3)
    server.mirror().sync([Trial(trial, successor)])
    assert server.steps("train/l0") == server.steps("train/loss") == [64, 128, 192]


@pytest.mark.parametrize("value", [1.0, 1.234567890123456], ids=["as long", "longer"])
def test_rows_cut_back_and_written_again_between_two_syncs_are_not_lost_or_doubled(
    server: Server, tmp_path: Path, value: float
) -> None:
    trial, directory = pair(tmp_path)
    append(directory, *range(1, 6), **{"train/tokens_per_s": 1.0})
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])
    successor = begin(tmp_path, trial)
    successor.newest_state()
    append(successor, *range(1, 9), **{"train/tokens_per_s": value})
    mirror.sync([Trial(trial, successor)])
    assert server.steps() == [64 * step for step in range(1, 9)]


def test_rows_that_are_shorter_when_written_again_are_not_lost(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    append(directory, *range(1, 6), **{"train/tokens_per_s": 1.234567890123456789})
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])
    size = (directory.path / "metrics-1.jsonl").stat().st_size
    successor = begin(tmp_path, trial)
    successor.newest_state()
    steps = itertools.count(1)
    while (successor.path / "metrics-2.jsonl").stat().st_size <= size:
        append(successor, last := next(steps), **{"train/tokens_per_s": 1.0})
    assert last > 5
    mirror.sync([Trial(trial, successor)])
    assert server.steps() == [64 * step for step in range(1, last + 1)]


# ---- what a run says ------------------------------------------------------------------------------------------------


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


# ---- a server that fails --------------------------------------------------------------------------------------------


def fail_in_call(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Does as `function` does, but for one call."""
    calls = itertools.count(1)

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise ConnectionError("connection reset\nby peer")
        return function(*args, **kwargs)

    return call


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


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_a_run_carries_the_hash_of_its_sae(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    finish(directory, trial)
    server.mirror().sync([Trial(trial, directory)])
    run = server.run()
    folder = download_sae(server.client, run.info.run_id, tmp_path)
    assert content_hash(folder) == content_hash(directory.path / "sae") == run.data.tags[CONTENT]


@pytest.mark.parametrize("damaged", ["sae/sae_weights.safetensors", "metrics-1.jsonl"])
def test_one_damaged_trial_never_stops_another_from_being_mirrored(
    server: Server, tmp_path: Path, damaged: str
) -> None:
    pairs = [pair(tmp_path, 2, trial) for trial in TRIALS]
    for trial, directory in pairs:
        finish(directory, trial)
    flip(pairs[0][1].path / damaged)
    mirror = server.mirror()
    mirror.sync(pairs)
    found = {run.info.run_name: run for run in server.runs()}
    assert {name: run.info.status for name, run in found.items()} == {
        trial.name: "FAILED" if trial is ONE else "FINISHED" for trial in TRIALS
    }
    line = f"{pairs[0][1].path / damaged}: this file is damaged; the same command trains this SAE again"
    assert mirror.damaged == {ONE.name: line}
    assert found[ONE.name].data.tags[FAILURE] == line
    assert CONTENT not in found[ONE.name].data.tags


def test_a_damaged_evaluation_is_made_again_and_never_nan_for_good(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    finish(directory, trial)
    (path,) = directory.path.glob("evaluations/*")
    mirror = server.mirror()
    for damage in DAMAGES.values():
        damage(path)
        assert directory.status(REQUEST).missing == (None,)
        mirror.sync([Trial(trial, directory)])
        assert server.run().info.status == "RUNNING"
        directory.save_evaluation(FINGERPRINT, trial.training.tokens, evaluation(l0=21))
    mirror.sync([Trial(trial, directory)])
    assert server.run().info.status == "FINISHED"
    assert server.run().data.metrics["eval/l0"] == 21


def test_a_trial_whose_description_is_gone_is_mirrored(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    finish(directory, trial)
    (directory.path / "trial.json").unlink()
    server.mirror().sync([Trial(trial, directory)])
    assert server.run().info.status == "FINISHED"


def test_a_finished_run_gets_the_metrics_that_evaluations_of_before_did_not_have(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, directory = pair(tmp_path, 2)
    finish(directory, trial)
    server.mirror().sync([Trial(trial, directory)])
    before = server.run()
    assert before.data.tags[SCHEMA] == "1"
    added_metric(monkeypatch)
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])  # while its evaluation is still to be made again
    mirror.close("KILLED")
    assert server.run().info.status == "FINISHED" and server.run().data.metrics == before.data.metrics
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(norm_ratio=0.75))
    server.mirror().sync([Trial(trial, directory)])
    run = server.run()
    assert run.info.run_id == before.info.run_id and run.info.status == "FINISHED"
    assert run.data.tags[SCHEMA] == "2"
    assert run.data.metrics == before.data.metrics | {"eval/norm_ratio": 0.75}
    assert server.steps() == [64, 128]


def test_a_finished_run_gets_the_new_values_of_metrics_whose_formula_has_changed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their steps are those of the old values."""
    trial, directory = pair(tmp_path, 2)
    directory.append(192, {"eval/fvu": 0.5})  # an evaluation while it is trained
    finish(directory, trial, pursuit={4: evaluation(l0=3), 16: evaluation(l0=15)})
    encoders = (None, 4, 16)
    server.mirror(encoders=encoders).sync([Trial(trial, directory)])
    before = server.run()
    monkeypatch.setitem(METRICS, "fvu", dataclasses.replace(METRICS["fvu"], since=2))
    time.sleep(0.002)  # made later
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(fvu=0.25))
    for l0, fvu in ((4, 0.05), (16, 0.5)):  # less and more than before
        directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=l0 - 1, fvu=fvu), l0)
    failing = server.mirror(encoders=encoders)
    failing.client.set_tag = fail_in_call(failing.client.set_tag, 1)  # the values are there, and not yet said to be
    with pytest.raises(ConnectionError):
        failing.sync([Trial(trial, directory)])
    for _ in range(2):
        server.mirror(encoders=encoders).sync([Trial(trial, directory)])
    run = server.run()
    assert run.info.run_id == before.info.run_id and run.data.tags[SCHEMA] == "2"
    assert run.data.metrics == before.data.metrics | {"eval/fvu": 0.25, "pursuit/fvu": 0.5}
    values = [(step, value) for step, _, value in server.history(run, "eval/fvu")]
    assert values == [(192, 0.5), (1024, 0.1), (1024, 0.25)]
    values = [(step, value) for step, _, value in server.history(run, "pursuit/fvu")]
    assert values == [(4, 0.1), (4, 0.05), (16, 0.1), (16, 0.5)]
    (read,) = MLflowOutcomes(server.uri, server.experiment).finished(None)
    assert read.evaluation["fvu"] == 0.25
    assert MLflowOutcomes(server.uri, server.experiment).pursuit(read)[4]["fvu"] == 0.05
    assert server.steps("train/loss") == [64, 128]
