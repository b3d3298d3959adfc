"""`scheduler.stop_dominated` as a scheduler of Ray Tune: decisions go to storage first, then Tune ends the trial."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler

from gsae_ray.config.scheduler import RUNG, SchedulerSettings, compared, rungs
from gsae_ray.driver.dominance import Beaten, Dominance, Measured
from gsae_ray.storage.metric_rows import Row
from gsae_ray.storage.stopped import StoppedTrials, told
from gsae_ray.storage.trial_directory import Trial


class Decisions:
    """Compares trials as their metric rows come, and writes down which of them are stopped."""

    def __init__(
        self,
        trials: Sequence[Trial],
        settings: SchedulerSettings,
        stopped: StoppedTrials,
        say: Callable[[str], None],
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Takes in what the trials have measured before.

        Args:
            trials: all of the launch, those that are done too.
            settings: of the scheduler.
            stopped: where decisions are written down.
            say: is told of them.
            allowed: whether this driver may decide; another may have taken over.
        """
        self.stopped = stopped
        self._trials = {trial.name: trial for trial in trials}
        self._rungs = {spec.name: rungs(spec, settings) for spec in compared((t.spec for t in trials), settings)}
        self._dominance = Dominance(trial.spec for trial in trials if trial.name in self._rungs)
        self._say, self._allowed = say, allowed
        for line in stopped.damaged(self._rungs):
            say(line)
        for name in self._rungs:
            rows: list[Row] = self._trials[name].directory.rows()[0]
            for row in rows:
                self.observe(name, row["step"], row["metrics"])

    def rungs(self) -> dict[str, tuple[int, ...]]:
        """Trial -> the numbers of rows after which it is compared."""
        return self._rungs

    def observe(self, trial: str, tokens: int, metrics: Mapping[str, Any]) -> None:
        """Takes a metric row of a trial; where it has a comparison, decides."""
        if trial not in self._rungs or (measured := _measured(metrics)) is None or self._failed(trial):
            return
        passed = [rung for rung in self._rungs[trial] if rung <= tokens]
        if passed:
            for beaten in self._dominance.report(trial, passed[-1], measured):
                self._write(beaten)

    def take_back(self) -> None:
        """Takes back what trials have decided that have failed since: their numbers led nowhere."""
        for name in filter(self._failed, self._rungs):
            self._dominance.forget(name)
        for name in self._rungs:
            stop = self.stopped.get(name)
            if stop is not None and all(map(self._failed, stop["by"])) and self._allowed():
                self.stopped.remove(name)
                self._dominance.forgive(name)
                self._say(f"{name} is trained on: {stop['by'][0]}, by which it was stopped, has failed")

    def _failed(self, trial: str) -> bool:
        return self._trials[trial].directory.failure is not None

    def _write(self, beaten: Beaten) -> None:
        if not self._allowed():
            return
        for name in beaten.trials:
            if self._trials[name].directory.done or name in self.stopped:
                continue
            self.stopped.create(
                name,
                {
                    "tokens": beaten.rung,
                    "l0": beaten.measured.l0,
                    "quality": beaten.measured.quality,
                    "by": list(beaten.by),
                    "by_l0": beaten.by_measured.l0,
                    "by_quality": beaten.by_measured.quality,
                },
            )
            stop = self.stopped.get(name)
            if stop is not None:
                self._say(f"{name} is {told(stop)}")


class StopDominated(FIFOScheduler):
    """Starts trials in their order, and ends those that are stopped at their next result."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self.decisions = decisions

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes it down for a restore, which is not used

    def on_trial_complete(self, _controller: Any, trial: Any, _result: dict[str, Any]) -> None:
        """A trial that failed beats nobody any more."""
        try:
            self.decisions.take_back()
        except Exception:
            logging.getLogger(__name__).warning(
                "after %s the scheduler could not look for failures", trial, exc_info=True
            )

    def on_trial_result(self, _controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decides. An error that reached Tune would end the sweep: then the trial goes on."""
        name = trial.config["trial"]["name"]
        try:
            self.decisions.observe(name, int(result.get("tokens", 0)), result)
            if name in self.decisions.stopped:
                return str(FIFOScheduler.STOP)
        except Exception:
            logging.getLogger(__name__).warning("the scheduler could not decide about %s", name, exc_info=True)
        return str(FIFOScheduler.CONTINUE)


def _measured(metrics: Mapping[str, Any]) -> Measured | None:
    """What a metric row says of L0 and quality, where it has a comparison."""
    l0 = metrics.get(f"{RUNG}l0")
    if l0 is None:
        return None
    recovered = metrics.get(f"{RUNG}loss_recovered", math.nan)
    quality = recovered if math.isfinite(recovered) else 1 - metrics.get(f"{RUNG}fvu", math.nan)
    return Measured(float(l0), float(quality))
