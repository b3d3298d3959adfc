"""Scores of features, and their means over an SAE's features with intervals. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gsae_ray.evaluation.bootstrap import DRAWS, SEED, ends_of, low_and_high


def balanced_accuracy(right: Sequence[bool], said: Sequence[bool]) -> float | None:
    """The mean of the shares of yes and of no that are said rightly: 1 for who knows, 0.5 for who always says the same.

    None where one of the two is missing among the right answers.
    """
    truth, answers = np.array(right, bool), np.array(said, bool)
    if not len(truth) or truth.all() or not truth.any():
        return None
    return float((answers[truth].mean() + (~answers[~truth]).mean()) / 2)


def with_interval(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean of a score over features, and the ends of its 95 % percentile bootstrap interval over them.

    Args:
        name: of the score.
        values: one a feature. Of one alone there is no interval, of none nothing at all.

    Returns:
        `{name}`, `{name}_low` and `{name}_high`.
    """
    if not values:
        return {}
    found = {name: float(np.mean(values))}
    if len(values) > 1:
        drawn = np.random.RandomState(SEED).randint(len(values), size=(DRAWS, len(values)))
        found |= zip(low_and_high(name), ends_of(np.array(values)[drawn].mean(1)), strict=True)
    return found
