"""How many pairs a study needs to see the difference that the paper measured."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import optimize, stats

from gsae_ray.study.statistics import Array

EFFECT, POWER, LEVEL = 0.13, 0.80, 0.05
"""The paper's mean difference; how often it is to be seen; and at which one-sided p."""
DRAWS = 1000
"""Studies of each size that are simulated: the power is known to 1.3 points of a hundred."""
MOST = 5000
"""Pairs up to which is looked."""
FEWEST = 10
"""Pairs from which power is estimated: fewer say next to nothing of how differences vary."""
METHOD = (
    "simulated: differences are drawn from those observed, reweighted exponentially to that mean, and tested as these"
)


@dataclasses.dataclass(frozen=True)
class Power:
    """What a study of other size would see."""

    effect: float
    power: float
    level: float
    pairs: int | None
    """The fewest that see the effect that often, to 2 %; None where `why` says why."""
    of_this: float | None
    """Power of a study with as many pairs as there are."""
    why: str = ""
    method: str = METHOD

    @property
    def features(self) -> int | None:
        return None if self.pairs is None else 2 * self.pairs


def power_of(differences: Array, seed: int) -> Power:
    """How many pairs it takes to see `EFFECT`, if differences vary as the observed ones do."""
    if len(differences) < FEWEST:
        why = f"pairs rated so far: {len(differences)}, and it takes {FEWEST} to know how differences vary"
        return Power(EFFECT, POWER, LEVEL, None, None, why)
    tilted = _tilted(differences)
    if tilted is None:
        return Power(EFFECT, POWER, LEVEL, None, None, "all differences lie on one side of that mean")
    values, weights = tilted

    def power(pairs: int) -> float:
        return _power(values, weights, pairs, seed)

    of_this = power(len(differences)) if len(differences) <= MOST else None
    low, high = 0, 25
    while (reached := power(high)) < POWER and high < MOST:
        low, high = high, min(2 * high, MOST)
    if reached < POWER:
        return Power(EFFECT, POWER, LEVEL, None, of_this, f"more than {MOST} pairs")
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return Power(EFFECT, POWER, LEVEL, high, of_this)


def _tilted(differences: Array) -> tuple[Array, Array] | None:
    """The values that were observed and how likely each is, with the mean `EFFECT`.

    To shift them would not do: no difference would be 0 any more, and all that were would count as above 0. The
    weights exp(t d) are the nearest to the observed shares, in relative entropy, with that mean.
    """
    values, counts = np.unique(differences, return_counts=True)
    if len(values) < 2 or not values[0] < EFFECT < values[-1]:
        return None

    def weights(tilt: float) -> Array:
        tilted = counts * np.exp(tilt * values - abs(tilt) * np.abs(values).max())
        return tilted / tilted.sum()

    tilt = optimize.brentq(lambda t: float(weights(t) @ values) - EFFECT, -50, 50)
    return values, weights(tilt)


def _power(values: Array, weights: Array, pairs: int, seed: int) -> float:
    random = np.random.default_rng([seed, pairs])
    seen, drawn = 0, 0
    while drawn < DRAWS:  # in parts, of 1 MB or so
        part = min(DRAWS - drawn, max(1, 10**6 // pairs))
        studies = random.choice(values, (part, pairs), p=weights)
        studies = studies[studies.any(axis=1)]
        if len(studies):
            found = stats.wilcoxon(studies, zero_method="pratt", alternative="greater", method="approx", axis=1)
            seen += int((found.pvalue < LEVEL).sum())
        drawn += part
    return seen / DRAWS
