"""Every trial comes to an end, whatever Tune makes of it; with a Tune of the test's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from supervised import SPECS, Watch
from trials import random_sae

from gsae_ray.config.scheduler import SchedulerSettings
from gsae_ray.driver.start_actors import Actors
from gsae_ray.driver.stop_dominated import Decisions
from gsae_ray.driver.trial_deaths import DEATHS_WITHOUT_CHECKPOINT
from gsae_ray.driver.trials import TrialRunner
from gsae_ray.errors import SweepStoppedError
from gsae_ray.storage.stopped import StoppedTrials
from gsae_ray.storage.trial_directory import Trial

ONE, TWO = (spec.name for spec in SPECS)


class Runner(TrialRunner):
    """Runs the test's function in place of Tune."""

    def __init__(self, watch: Watch, tune: Callable[[Sequence[Trial]], dict[str, str]], launch: Any = None) -> None:
        super().__init__(launch, Actors(None, watch.supervisor), "")
        self.watch = watch
        self.tune = tune
        trials, stopped = list(watch.trials.values()), StoppedTrials(Path("of no launch"))
        self.decisions = Decisions(trials, SchedulerSettings(), stopped, print)
        self.runs: list[list[str]] = []

    def _tune(self, trials: Sequence[Trial]) -> dict[str, str]:
        self.runs.append([trial.name for trial in trials])
        return self.tune(trials)

    def train(self) -> None:
        self._train_to_the_end(list(self.watch.trials.values()))


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


def finish(watch: Watch, name: str) -> None:
    watch.begin(name).finish(random_sae(watch.trials[name].spec))


def test_trials_that_are_done_after_one_run_of_tune_need_no_other(watch: Watch) -> None:
    def tune(trials: Sequence[Trial]) -> dict[str, str]:
        for trial in trials:
            finish(watch, trial.name)
        return {}

    runner = Runner(watch, tune)
    runner.train()
    assert runner.runs == [[ONE, TWO]]


def test_a_trial_that_cannot_even_be_started_fails_with_the_error_of_tune(watch: Watch) -> None:
    """Tune gives it up without a word to its callbacks."""

    def tune(trials: Sequence[Trial]) -> dict[str, str]:
        if len(trials) == 2:
            finish(watch, ONE)
        return {TWO: "its actor cannot be made"}

    runner = Runner(watch, tune)
    runner.train()
    assert runner.runs == [[ONE, TWO], *[[TWO]] * (DEATHS_WITHOUT_CHECKPOINT - 1)]
    failure = watch.trials[TWO].directory.failure
    assert failure == "its process died 5 times without a checkpoint after 0 tokens: its actor cannot be made"


def test_a_death_that_a_callback_has_told_of_is_counted_once(watch: Watch) -> None:
    finish(watch, ONE)

    def tune(trials: Sequence[Trial]) -> dict[str, str]:
        for trial in trials:
            watch.supervisor.trial_died(trial.name, "killed")
        return {TWO: "killed"}

    runner = Runner(watch, tune)
    runner.train()
    assert len(runner.runs) == watch.supervisor.deaths.total[TWO] == DEATHS_WITHOUT_CHECKPOINT


def test_a_launch_that_has_to_stop_leaves_its_trials_to_be_gone_on_with(watch: Watch) -> None:
    def tune(_: Sequence[Trial]) -> dict[str, str]:
        watch.stop.set(SweepStoppedError("storage is full"))
        return {}

    with pytest.raises(SweepStoppedError, match="storage is full"):
        Runner(watch, tune).train()
    assert not any(trial.directory.ended for trial in watch.trials.values())


def test_a_trial_that_a_scheduler_has_stopped_is_not_begun_and_its_blocks_go(watch: Watch) -> None:
    watch.supervisor.is_stopped = lambda name: name == TWO

    def tune(_: Sequence[Trial]) -> dict[str, str]:
        finish(watch, ONE)
        return {}

    runner = Runner(watch, tune)
    runner.train()
    assert watch.store.abandoned[:1] == [(TWO, True)] and len(runner.runs) == 1
    assert not watch.trials[TWO].directory.ended


def test_a_trial_whose_parent_failed_is_skipped(watch: Watch) -> None:
    child = Trial(dataclasses.replace(SPECS[1], parent=ONE), watch.trials[TWO].directory)
    launch = SimpleNamespace(prepared=SimpleNamespace(parents={}), trials=list(watch.trials.values()))
    runner = Runner(watch, lambda _: {}, launch)
    assert runner._with_parents([child]) == []
    assert child.directory.failure == "skipped: parent failed" and watch.store.abandoned == [(TWO, True)]
    finish(watch, ONE)
    assert runner._with_parents([child]) == [child]
