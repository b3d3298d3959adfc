"""Bootstrap draws of held-out contexts, and the ends of an SAE's own intervals that its evaluation keeps. numpy only.

Contexts are drawn with replacement, as many as there are; a percentile interval is read from the metric of each draw
(Efron & Tibshirani 1993, chapter 13). The same number of contexts and the same seed give the same draws, so that the
intervals of all SAEs of a site are of the same choices of contexts. `results.intervals` has intervals of comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from gsae_ray.evaluation.metrics import AbsentSumError, Array, Totals, resampled

LEVEL, DRAWS, SEED = 0.95, 1000, 0
"""Share of draws that an interval covers, number of draws, and their seed, unless something else is asked for."""
PART = 100
"""Draws at a time."""

Sequences = Mapping[str, ArrayLike]
"""An SAE's `Evaluation.sequences`: each sum, of every held-out context."""


def draw_contexts(contexts: int, draws: int, random: np.random.RandomState) -> Array:
    """How often each context is taken [1 + draws, contexts]: at first each once, then in each draw.

    It takes 8 bytes a draw and context of memory.
    """
    drawn = random.multinomial(contexts, np.full(contexts, 1 / contexts), size=draws)
    return np.concatenate([np.ones((1, contexts)), drawn])


def sums_of(sequences: Sequences, counts: Array) -> Totals:
    """The sums over all contexts, and over each draw of them [1 + draws]."""
    return Totals(zip(sequences, (counts @ np.array(list(sequences.values()), np.float64).T).T, strict=True))


def ends_of(values: Array, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of a statistic's values over draws; NaN where none is finite. Others are left out."""
    values = values[np.isfinite(values)]
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


def low_and_high(metric: str) -> tuple[str, str]:
    """What the ends of a metric's interval are called: `l0_low`, `l0_high`."""
    return f"{metric}_low", f"{metric}_high"


def intervals_of(sequences: Sequences) -> dict[str, float]:
    """The ends of the 95 % interval, over held-out contexts, of each metric that sums over contexts give.

    Args:
        sequences: as an evaluation keeps them. What takes a sum that is not among them has no interval.

    Returns:
        `{metric}_low` and `{metric}_high` of each.
    """
    ends: dict[str, float] = {}
    if not sequences:
        return ends
    contexts, random = len(np.atleast_1d(next(iter(sequences.values())))), np.random.RandomState(SEED)
    # In parts, which draw the same contexts as all at once, in a tenth of the memory.
    parts = [sums_of(sequences, draw_contexts(contexts, PART, random)) for _ in range(DRAWS // PART)]
    for name, formula in resampled(features=True).items():
        try:
            values = np.concatenate([formula(sums)[1:] for sums in parts])
        except AbsentSumError:  # without a language model there are no cross-entropies
            continue
        ends |= zip(low_and_high(name), ends_of(values), strict=True)
    return ends
