"""What Tune tells of trials, and how trials are ended, with a supervisor and a time of the test's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial
from supervised import SPECS, Watch
from trials import random_sae

from gsae_ray.driver.cluster_nodes import TELL_AFTER_S, TELL_EVERY_S
from gsae_ray.driver.trial_deaths import DEATHS_WITHOUT_CHECKPOINT
from gsae_ray.driver.tune_callbacks import StopWhenAsked, TrialCallbacks
from gsae_ray.errors import SweepStoppedError

ONE = SPECS[0].name
PENDING, RUNNING = (SimpleNamespace(status=status) for status in (TuneTrial.PENDING, TuneTrial.RUNNING))


class Tune:
    """Calls the callbacks as Tune's loop does."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.free = "0 of 2 CPUs are free"
        self.callbacks = TrialCallbacks(watch.supervisor, lambda: self.free, clock=lambda: watch.now)

    def step(self, seconds: float, *trials: Any) -> None:
        self.watch.now += seconds
        self.callbacks.on_step_end(iteration=0, trials=list(trials))

    def tell(self, hook: str, trial: Any, **info: Any) -> None:
        getattr(self.callbacks, hook)(iteration=0, trials=[trial], trial=trial, **info)


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    return Tune(Watch(tmp_path))


def tune_trial(error: str = "") -> Any:
    return SimpleNamespace(config={"trial": SPECS[0].to_json()}, get_error=lambda: error, max_failures=-1)


def test_trials_that_find_no_free_resources_are_told_of_and_in_the_end_stop_the_launch(tune: Tune) -> None:
    tune.step(0, PENDING)
    tune.step(TELL_AFTER_S, PENDING)
    assert tune.watch.shown == []
    tune.step(1, PENDING)
    assert tune.watch.shown == ["no trial runs: 0 of 2 CPUs are free"]
    tune.step(50, PENDING)
    tune.watch.stop.check()
    tune.step(50, PENDING)
    with pytest.raises(SweepStoppedError, match="^no trial has had room .* trials.room_timeout_s = 100 s"):
        tune.watch.stop.check()


def test_that_no_trial_runs_is_told_again_every_ten_minutes(tune: Tune) -> None:
    settings = tune.watch.supervisor.settings.model_copy(update={"room_timeout_s": 1e6})
    tune.watch.supervisor.settings = settings
    tune.step(0, PENDING)
    for _ in range(3):
        tune.step(TELL_EVERY_S + 1, PENDING)
        tune.step(1, PENDING)
    assert len(tune.watch.shown) == 3


def test_a_trial_that_runs_ends_the_wait(tune: Tune) -> None:
    for _ in range(10):
        tune.step(50, PENDING, RUNNING)
        tune.step(20, PENDING)
    tune.step(500)
    tune.watch.stop.check()
    assert tune.watch.shown == []


def test_what_holds_the_resources_may_stay_unsaid(tune: Tune) -> None:
    """An error of a callback would end the sweep, whose trials only wait."""

    def describe() -> str:
        raise RuntimeError("the cluster does not answer")

    tune.callbacks.describe_resources = describe
    tune.step(0, PENDING)
    tune.step(TELL_AFTER_S + 1, PENDING)
    assert tune.watch.shown == []


@pytest.mark.parametrize("hook", ["on_trial_recover", "on_trial_error"])
def test_a_trial_that_dies_too_often_is_given_up_by_tune_too(tune: Tune, hook: str) -> None:
    tune.watch.begin(ONE)
    trial = tune_trial("Traceback\n  ray.exceptions.ActorDiedError: the actor died\n")
    for _ in range(DEATHS_WITHOUT_CHECKPOINT - 1):
        tune.tell(hook, trial)
    assert trial.max_failures == -1
    tune.tell(hook, trial)
    assert trial.max_failures == 0
    failure = tune.watch.trials[ONE].directory.failure
    assert failure is not None and failure.endswith(": ray.exceptions.ActorDiedError: the actor died")


@pytest.mark.parametrize("done", [False, True])
def test_the_blocks_of_a_trial_that_has_ended_are_let_go(tune: Tune, done: bool) -> None:
    directory = tune.watch.begin(ONE)
    if done:
        directory.finish(random_sae(SPECS[0]))
    tune.tell("on_trial_complete", tune_trial())
    assert tune.watch.store.abandoned == [(ONE, done)]


def test_the_machine_of_a_trial_is_noted(tune: Tune) -> None:
    tune.tell("on_trial_result", tune_trial(), result={"tokens": 1, "machine": "A"})
    tune.tell("on_trial_result", tune_trial(), result={"tokens": 2})
    assert tune.watch.supervisor.machines == ["A"]


def test_an_error_of_a_callback_does_not_reach_tune(tune: Tune, caplog: pytest.LogCaptureFixture) -> None:
    tune.tell("on_trial_complete", SimpleNamespace(config={"trial": {"name": "unknown"}}))
    assert "on_trial_complete failed" in caplog.text


def test_trials_are_ended_when_the_launch_has_to_stop(tune: Tune) -> None:
    stopper = StopWhenAsked(tune.watch.supervisor)
    assert not stopper("id", {"tokens": 64}) and not stopper.stop_all()
    assert not stopper("id", {"tokens": 64, "stopped": "storage is full"}), "all trials end, and this one has"
    assert stopper.stop_all()
    with pytest.raises(SweepStoppedError, match="storage is full"):
        tune.watch.stop.check()
