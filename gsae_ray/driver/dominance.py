"""Which trials another has clearly beaten: the rule of `scheduler.stop_dominated`, without Ray and without storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gsae_ray.config.scheduler import group_of, setting_of
from gsae_ray.config.trial import TrialSpec

AS_SPARSE = 1.02
"""The L0 of the better one ÷ that of the other, at most: two SAEs that ask for the same L0 differ by as much."""


class Measured(NamedTuple):
    """What a setting came to, as a mean over its seeds as far as they have come."""

    l0: float
    quality: float
    """Loss recovered; without a language model explained variance."""


class Beaten(NamedTuple):
    """A setting that is to be stopped, and why."""

    trials: tuple[str, ...]
    """Its trials, one a seed."""
    rung: int
    """The number of rows after which they were compared."""
    measured: Measured
    by: tuple[str, ...]
    """The trials of the better setting."""
    by_measured: Measured


def beats(one: Measured, other: Measured, done: float) -> bool:
    """Whether one is clearly better: about as sparse or sparser, and with far less lost (1 − loss recovered, or FVU).

    It loses at most the share of what the other does that is `done` of the run: a quarter at a quarter, half at half.
    Low learning rates are far behind early on, and with an L0 that is still larger some come out ahead: on the built-in
    model one that lost 3.4 times as much at a quarter of 781 steps.
    """
    return one.l0 <= AS_SPARSE * other.l0 and 1 - one.quality <= done * (1 - other.quality)


class Dominance:
    """Takes what trials measure at their rungs, and says which settings are beaten."""

    def __init__(self, trials: Iterable[TrialSpec]) -> None:
        """Begins without measurements.

        Args:
            trials: those that may be compared (`config.scheduler.compared`).
        """
        self._settings: dict[str, list[str]] = {}
        """Setting -> its trials."""
        self._group: dict[str, str] = {}
        """Setting -> its group."""
        self._setting: dict[str, str] = {}
        """Trial -> its setting."""
        self._tokens: dict[str, int] = {}
        """Setting -> how many rows its trials are trained on."""
        for trial in trials:
            setting = setting_of(trial)
            self._setting[trial.name] = setting
            self._group[setting] = group_of(trial)
            self._tokens[setting] = trial.training.trained_tokens
            self._settings.setdefault(setting, []).append(trial.name)
        self._found: dict[str, dict[int, Measured]] = {}
        """Trial -> rung -> what it measured there."""
        self._beaten: set[str] = set()

    def report(self, trial: str, rung: int, measured: Measured) -> list[Beaten]:
        """Takes a trial's measurement, the same one again too. Returns the settings that are beaten by now.

        A setting is judged at the last rung that it has come to, against the others of its group at that rung, each by
        the mean over its seeds that are there: to wait for all of them would let most run to their end, where they do
        not run beside each other. One that was said to be beaten before is not said again, and beats nobody: so one of
        each group is always left.
        """
        if trial not in self._setting:
            return []
        self._found.setdefault(trial, {})[rung] = measured
        own, found = self._setting[trial], []
        for other in [s for s in self._settings if s != own and self._group[s] == self._group[own]]:
            for worse, better in ((own, other), (other, own)):
                if (beaten := self._judged(worse, better)) is not None:
                    self._beaten.add(worse)
                    found.append(beaten)
        return found

    def forget(self, trial: str) -> None:
        """Takes back what a trial measured: it has failed, and its setting beats nobody by that."""
        self._found.pop(trial, None)

    def forgive(self, trial: str) -> None:
        """Takes back that the setting of a trial is beaten: what beat it has failed."""
        self._beaten.discard(self._setting[trial])

    def _judged(self, worse: str, better: str) -> Beaten | None:
        """A setting, where another one beats it that is not beaten itself."""
        if worse in self._beaten or better in self._beaten:
            return None
        rung = max((rung for trial in self._settings[worse] for rung in self._found.get(trial, ())), default=0)
        low, high = self._mean(worse, rung), self._mean(better, rung)
        if low is None or high is None or not beats(high, low, rung / self._tokens[worse]):
            return None
        return Beaten(self._trials(worse), rung, low, self._trials(better), high)

    def _trials(self, setting: str) -> tuple[str, ...]:
        return tuple(self._settings[setting])

    def _mean(self, setting: str, rung: int) -> Measured | None:
        """The mean over a setting's seeds; None until one has been measured."""
        known = [self._found[t][rung] for t in self._settings[setting] if rung in self._found.get(t, ())]
        if not known:
            return None
        return Measured(sum(seed.l0 for seed in known) / len(known), sum(seed.quality for seed in known) / len(known))
