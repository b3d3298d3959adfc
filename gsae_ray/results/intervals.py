"""How sure a number is: bootstrap intervals over the held-out contexts, paired between SAEs. numpy only.

    rows = gsae_ray.frontier("quickstart", site="blocks.2.hook_resid_post")
    saes = [results.sequences(run_id) for run_id in rows["run_id"]]
    gated = [i for i, name in enumerate(rows["architecture"]) if name == "gated"]
    standard = [i for i, name in enumerate(rows["architecture"]) if name == "standard"]

    interval(of("loss_recovered", 0), [saes])                      # of the first SAE
    interval(l0_ratio(gated, standard), [saes])                    # L0 of gated ÷ L0 of standard SAEs
    interval(l0_ratio(gated, standard), [saes, saes_of_seed_1])    # over replicates too

Contexts are drawn with replacement, as many as there are, the same ones for all SAEs that were evaluated on them: what
makes a context hard is common to the SAEs and cancels where they are compared. A percentile interval is read from the
statistic of each draw (Efron & Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gsae_ray.errors import UserError, suggest
from gsae_ray.evaluation import metrics
from gsae_ray.evaluation.bootstrap import DRAWS, LEVEL, SEED, Sequences, draw_contexts, ends_of, sums_of
from gsae_ray.evaluation.metrics import Array, Sums, resampled
from gsae_ray.results import curves

Statistic = Callable[[Sequence[Sums]], Any]
"""The sums of each SAE over some choice of contexts, for many choices at once [draws] -> the number [draws]."""

SAME = 1e-3
"""Relative difference up to which two marks (`_mark`) are those of one context (on other hardware)."""


class Interval(NamedTuple):
    value: float
    """The statistic of all contexts, each once."""
    low: float
    high: float


def of(metric: str, sae: int = 0) -> Statistic:
    """One of `evaluation.metrics.resampled()` (l0, loss_recovered, gamma, …) of one SAE, by its position.

    Raises:
        UserError: there is no such metric.
    """
    known = resampled(features=True)
    if metric not in known:
        raise UserError(f"metric: unknown {metric!r}; {suggest(metric, known)}")
    return lambda saes: known[metric](saes[sae])


def l0_ratio(better: Sequence[int], base: Sequence[int]) -> Statistic:
    """`curves.l0_ratio` at equal loss recovered (see `metrics.quality`), of two groups of SAEs by their positions.

    For a bootstrap of one's own, over replicates say; `gsae_ray.compare` has the ratio of each kind of a frontier.
    """

    def ratio(saes: Sequence[Sums]) -> Array:
        l0, quality = (np.stack([metric(sums) for sums in saes]) for metric in (metrics.l0, metrics.quality))

        def curve(group: Sequence[int], draw: int) -> tuple[Array, Array]:
            return l0[list(group), draw], quality[list(group), draw]

        draws = range(l0.shape[1])
        return np.array([curves.l0_ratio(curve(better, draw), curve(base, draw)) for draw in draws])

    return ratio


def interval(
    statistic: Statistic,
    replicates: Sequence[Sequence[Sequences]],
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval:
    """A percentile bootstrap interval of a statistic of SAEs.

    Args:
        statistic: as `of` and `l0_ratio` give it.
        replicates: usually one: the SAEs of a site. Of several (other seeds, say), each with SAEs in the same order,
            the statistic is the mean over them, and each draw draws among them too.
        level: the share of draws that the interval covers.
        draws: how many; each needs 8 bytes a context of memory.
        seed: of the draws; the same seed draws the same contexts.

    Returns:
        Draws for which the statistic is NaN are left out; where it always is, so is the interval.

    Raises:
        UserError: SAEs of one replicate were evaluated on different contexts, or without a language model where the
            statistic takes its losses.
    """
    random = np.random.RandomState(seed)  # its streams are frozen by numpy's compatibility policy
    held_out: list[tuple[Array, Array]] = []  # a set of contexts each: their marks, and how often each is drawn
    values = np.stack([statistic(_drawn(saes, held_out, draws, random)) for saes in replicates])
    chosen = random.randint(len(values), size=(draws, len(values)))
    means = values[chosen, np.arange(1, draws + 1)[:, None]].mean(1)
    return Interval(float(values[:, 0].mean()), *ends_of(means, level))


def _drawn(
    saes: Sequence[Sequences], held_out: list[tuple[Array, Array]], draws: int, random: np.random.RandomState
) -> list[Sums]:
    """The sums of each SAE: over all contexts, then over each draw of them [1 + draws]."""
    mark = check_contexts(saes)
    counts = next((counts for other, counts in held_out if _same(mark, other)), None)
    if counts is None:
        counts = draw_contexts(len(mark), draws, random)
        held_out.append((mark, counts))
    return [sums_of(sae, counts) for sae in saes]


def check_contexts(saes: Sequence[Sequences]) -> Array:
    """Refuses SAEs that were evaluated on different contexts.

    Returns:
        a mark of each context that they share, by which it is known again.

    Raises:
        UserError: they were.
    """
    mark = _mark(saes[0])
    if not all(_same(mark, _mark(sae)) for sae in saes):
        raise UserError("interval: these SAEs were evaluated on different contexts; compare those of one frontier")
    return mark


def _mark(sae: Sequences) -> Array:
    """A sum of each context that does not depend on the SAE, by which the contexts are known again.

    It is the clean model's loss, which sites share; without a language model it is the rows' ‖x‖².
    """
    return np.asarray(sae["nll_clean"] if "nll_clean" in sae else sae["x_sq"], np.float64)


def _same(mark: Array, other: Array) -> bool:
    """Whether two evaluations are of the same contexts."""
    return mark.shape == other.shape and np.allclose(mark, other, rtol=SAME)
