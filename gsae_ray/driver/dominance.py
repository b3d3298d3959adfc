"""Which trials another has clearly beaten: the rule of `scheduler.stop_dominated`, without Ray and without storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gsae_ray.config.scheduler import group_of, setting_of
from gsae_ray.config.trial import TrialSpec

LESS_LOST = 0.9
"""The share that the better one loses of what the other does (1 − loss recovered, or FVU), at most: rates of learning
that differ by less change places before the end of a run."""
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
    """Which comparison it was, from 0."""
    measured: Measured
    by: tuple[str, ...]
    """The trials of the better setting."""
    by_measured: Measured


def beats(one: Measured, other: Measured) -> bool:
    """Whether one is clearly better: about as sparse or sparser, and with less lost."""
    return one.l0 <= AS_SPARSE * other.l0 and 1 - one.quality <= LESS_LOST * (1 - other.quality)


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
        for trial in trials:
            setting = setting_of(trial)
            self._setting[trial.name] = setting
            self._group[setting] = group_of(trial)
            self._settings.setdefault(setting, []).append(trial.name)
        self._found: dict[tuple[str, int], Measured] = {}
        self._beaten: set[str] = set()

    def report(self, trial: str, rung: int, measured: Measured) -> list[Beaten]:
        """Takes a trial's measurement, the same one again too. Returns the settings that are beaten by now.

        A setting is compared with the others of its group at the same rung, each by the mean over its seeds that are
        there: to wait for all of them would let most run to their end, where they do not run beside each other. One
        that was said to be beaten before is not said again.
        """
        if trial not in self._setting:
            return []
        self._found[trial, rung] = measured
        own, found = self._setting[trial], []
        mine = self._mean(own, rung)
        assert mine is not None
        for other in [s for s in self._settings if s != own and self._group[s] == self._group[own]]:
            if (theirs := self._mean(other, rung)) is None:
                continue
            for worse, better in ((own, other), (other, own)):
                low, high = (mine, theirs) if worse == own else (theirs, mine)
                if worse not in self._beaten and beats(high, low):
                    self._beaten.add(worse)
                    found.append(Beaten(self._trials(worse), rung, low, self._trials(better), high))
        return found

    def _trials(self, setting: str) -> tuple[str, ...]:
        return tuple(self._settings[setting])

    def _mean(self, setting: str, rung: int) -> Measured | None:
        """The mean over a setting's seeds; None until one has been measured."""
        known = [found for trial in self._settings[setting] if (found := self._found.get((trial, rung))) is not None]
        if not known:
            return None
        return Measured(sum(seed.l0 for seed in known) / len(known), sum(seed.quality for seed in known) / len(known))
