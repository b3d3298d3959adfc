"""Decisions of the scheduler: in storage before a trial is told, and read again by whoever goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from trials import begin, expand, finish

from gsae_ray.config.scheduler import SchedulerSettings
from gsae_ray.driver.stop_dominated import Decisions, StopDominated
from gsae_ray.storage.stopped import STOP, Stop, StoppedTrials
from gsae_ray.storage.trial_directory import Trial

SETTINGS = SchedulerSettings(stop_dominated=True, grace_tokens=256)
GOOD, BAD = {"rung/l0": 10.0, "rung/loss_recovered": 0.95}, {"rung/l0": 12.0, "rung/loss_recovered": 0.75}


class TuneTrial:
    """What a scheduler asks of a trial of Tune."""

    def __init__(self, trial: Trial) -> None:
        self.config = {"trial": {"name": trial.name}}


class Sweep:
    """Two trials that differ in their learning rate, in a launch with a scheduler."""

    def __init__(self, folder: Path) -> None:
        specs = [*expand(lr=1e-3, log_every_tokens=64), *expand(lr=1e-4, log_every_tokens=64)]
        self.trials = [Trial(spec, begin(folder, spec)) for spec in specs]
        self.folder = folder / "launches/one"
        self.said: list[str] = []
        self.ours = True

    def decisions(self) -> Decisions:
        stopped = StoppedTrials(self.folder)
        return Decisions(self.trials, SETTINGS, stopped, self.said.append, lambda: self.ours)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def answer(scheduler: StopDominated, trial: Trial, tokens: int, metrics: dict[str, Any]) -> str:
    return scheduler.on_trial_result(None, TuneTrial(trial), {"tokens": tokens, **metrics})


def test_a_beaten_trial_is_written_down_and_stopped(sweep: Sweep) -> None:
    good, bad = sweep.trials
    scheduler = StopDominated(sweep.decisions())
    assert answer(scheduler, good, 256, GOOD) == TrialScheduler.CONTINUE
    assert answer(scheduler, bad, 192, {}) == TrialScheduler.CONTINUE
    assert answer(scheduler, bad, 256, BAD) == TrialScheduler.STOP
    expected = {"tokens": 256, "l0": 12.0, "quality": 0.75, "by": [good.name], "by_l0": 10.0, "by_quality": 0.95}
    assert StoppedTrials(sweep.folder).get(bad.name) == expected
    assert good.name not in StoppedTrials(sweep.folder)
    assert sweep.said == [f"{bad.name} is stopped at 256 tokens: L0 12, quality 0.7500; {good.name} had L0 10, 0.9500"]
    assert answer(scheduler, good, 320, {}) == TrialScheduler.CONTINUE


def test_a_driver_that_goes_on_knows_what_was_measured_and_decided(sweep: Sweep) -> None:
    good, bad = sweep.trials
    good.directory.append(256, GOOD)
    scheduler = StopDominated(sweep.decisions())
    assert answer(scheduler, bad, 256, BAD) == TrialScheduler.STOP
    assert answer(StopDominated(sweep.decisions()), bad, 64, {}) == TrialScheduler.STOP


def test_a_decision_that_was_claimed_and_not_written_is_made_again(sweep: Sweep) -> None:
    good, bad = sweep.trials
    (sweep.folder / "stopped").mkdir(parents=True)
    file = sweep.folder / f"stopped/{bad.name}.json"
    file.touch()
    scheduler = StopDominated(sweep.decisions())
    answer(scheduler, good, 256, GOOD)
    assert answer(scheduler, bad, 256, BAD) == TrialScheduler.STOP
    assert STOP.read(file) is not None


def test_what_is_done_is_not_stopped(sweep: Sweep) -> None:
    good, bad = sweep.trials
    finish(bad.directory, bad.spec, "fingerprint", None, l0=12.0, loss_recovered=0.8)
    bad_first = StopDominated(sweep.decisions())
    answer(bad_first, bad, 256, BAD)
    assert answer(bad_first, good, 256, GOOD) == TrialScheduler.CONTINUE
    assert sweep.said == [] and bad.name not in StoppedTrials(sweep.folder)


def test_a_driver_that_was_replaced_decides_nothing(sweep: Sweep) -> None:
    good, bad = sweep.trials
    sweep.ours = False
    scheduler = StopDominated(sweep.decisions())
    answer(scheduler, good, 256, GOOD)
    assert answer(scheduler, bad, 256, BAD) == TrialScheduler.CONTINUE


def test_a_storage_that_fails_lets_the_trial_go_on(sweep: Sweep) -> None:
    good, bad = sweep.trials
    scheduler = StopDominated(sweep.decisions())
    sweep.folder.parent.mkdir(parents=True)
    sweep.folder.write_text("no folder")
    answer(scheduler, good, 256, GOOD)
    assert answer(scheduler, bad, 256, BAD) == TrialScheduler.CONTINUE


def test_what_had_stopped_a_trial_and_failed_afterwards_lets_it_go_on(sweep: Sweep) -> None:
    good, bad = sweep.trials
    scheduler = StopDominated(sweep.decisions())
    answer(scheduler, good, 256, GOOD)
    assert answer(scheduler, bad, 256, BAD) == TrialScheduler.STOP
    good.directory.fail("loss is NaN")
    scheduler.on_trial_complete(None, TuneTrial(good), {})
    assert bad.name not in scheduler.decisions.stopped and bad.name not in StoppedTrials(sweep.folder)
    assert sweep.said[-1] == f"{bad.name} is trained on: {good.name}, by which it was stopped, has failed"
    assert answer(scheduler, bad, 320, BAD) == TrialScheduler.CONTINUE


def test_what_has_failed_before_stops_nothing(sweep: Sweep) -> None:
    good, bad = sweep.trials
    good.directory.append(256, GOOD)
    good.directory.fail("loss is NaN")
    assert answer(StopDominated(sweep.decisions()), bad, 256, BAD) == TrialScheduler.CONTINUE


def test_the_first_decision_stays(sweep: Sweep) -> None:
    """Where two drivers decide at once; the second had looked before the first wrote."""
    name = sweep.trials[1].name
    early, late = StoppedTrials(sweep.folder), StoppedTrials(sweep.folder)
    stop = Stop(tokens=256, l0=1.0, quality=0.5, by=["first"], by_l0=1.0, by_quality=0.9)
    early.create(name, stop)
    with pytest.MonkeyPatch.context() as patch:  # it looks before the other one writes, and not again
        looks = iter([None, stop])
        patch.setattr(late, "get", lambda _: next(looks))
        late.create(name, {**stop, "by": ["second"]})
    assert StoppedTrials(sweep.folder).get(name) == stop


def test_a_damaged_decision_is_told_of(sweep: Sweep) -> None:
    bad = sweep.trials[1]
    (sweep.folder / "stopped").mkdir(parents=True)
    (sweep.folder / f"stopped/{bad.name}.json").write_text("{}")
    sweep.decisions()
    assert len(sweep.said) == 1 and "damaged; its trial is trained on until it is compared again" in sweep.said[0]
