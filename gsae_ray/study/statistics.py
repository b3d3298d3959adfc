"""The tests of the paper's study, each as one function: scipy's, with what cannot be computed said in words."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]
LEVEL, RESAMPLES = 0.90, 9999
"""Of the bootstrap intervals, as in the paper; and how often is resampled."""


@dataclasses.dataclass(frozen=True)
class Tested:
    """What a test came to; where there is no p, `why` says why."""

    test: str
    n: int
    """How many numbers, or blocks, it rests on."""
    statistic: float | None = None
    p: float | None = None
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean of paired differences of labels, with its interval and its one-sided test."""

    pairs: int
    mean: float | None
    low: float | None
    high: float | None
    tested: Tested
    why: str = ""
    """Why there is no interval."""


def difference(differences: Array, seed: int) -> Difference:
    """Mean difference [-2, 2], its 90 % BCa bootstrap interval (Efron 1987), and Wilcoxon's one-sided test.

    Args:
        differences: of the labels of each pair, better minus base.
        seed: of the bootstrap.
    """
    n = len(differences)
    tested = wilcoxon(differences)
    if n == 0:
        return Difference(0, None, None, None, tested, "no pairs")
    mean = float(differences.mean())
    if len(set(differences)) == 1:
        return Difference(n, mean, None, None, tested, "all differences are the same")
    found = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        batch=1000,  # all at once take 80 kB a pair
        method="BCa",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(n, mean, float(found.low), float(found.high), tested)


def wilcoxon(differences: Array) -> Tested:
    """Wilcoxon's signed-rank test of whether differences are above 0, with Pratt's treatment of zeros (Pratt 1959).

    Zeros are ranked with the others, then their ranks are left out. p is by the normal approximation, with the
    correction for ties: labels have three values, so that nearly all are tied, which the exact distribution has not.
    """
    name = "one-sided Wilcoxon signed-rank, Pratt"
    if not np.any(differences):
        return Tested(name, len(differences), why="no pairs" if not len(differences) else "all differences are 0")
    found = stats.wilcoxon(differences, zero_method="pratt", alternative="greater", method="approx")
    return Tested(name, len(differences), float(found.statistic), float(found.pvalue))


def mann_whitney(groups: Sequence[Array]) -> Tested:
    """Two-sided Mann-Whitney U of two independent groups, by the normal approximation with ties."""
    return _independent("Mann-Whitney", groups, lambda g: stats.mannwhitneyu(*g, method="asymptotic"), exactly=2)


def kruskal(groups: Sequence[Array]) -> Tested:
    """Kruskal-Wallis of two or more independent groups."""
    return _independent("Kruskal-Wallis", groups, lambda g: stats.kruskal(*g))


def friedman(table: Array) -> Tested:
    """Friedman's test of treatments [blocks, treatments], each block of which has all of them; three or more."""
    return _blocked("Friedman", table, lambda t: stats.friedmanchisquare(*t.T), blocks=1)


def page(table: Array) -> Tested:
    """Page's test of whether values rise from treatment to treatment [blocks, treatments in order]; three or more."""
    return _blocked("Page", table, stats.page_trend_test, blocks=2)


def _independent(
    name: str, groups: Sequence[Array], test: Callable[[Sequence[Array]], Any], exactly: int | None = None
) -> Tested:
    n = sum(map(len, groups))
    if len(groups) < 2 or not all(map(len, groups)):
        return Tested(name, n, why=f"not enough groups: {sum(map(bool, map(len, groups)))}, and it takes two")
    if exactly is not None and len(groups) != exactly:
        return Tested(name, n, why=f"{len(groups)} groups, and it takes {exactly}")
    return _tested(name, n, groups, test, same=len(set(np.concatenate(groups))) == 1)


def _blocked(name: str, table: Array, test: Callable[[Array], Any], blocks: int) -> Tested:
    n, treatments = table.shape
    if treatments < 3:
        return Tested(name, n, why=f"not enough groups: {treatments}, and it takes three")
    if n < blocks:
        return Tested(name, n, why=f"not enough blocks that have all groups: {n}, and it takes {blocks}")
    same = bool((table == table[:, :1]).all())
    return _tested(name, n, table, test, same)


def _tested(name: str, n: int, values: Any, test: Callable[[Any], Any], same: bool) -> Tested:
    if same:
        return Tested(name, n, why="no value differs from another")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = test(values)
    if not np.isfinite(found.pvalue):
        return Tested(name, n, why="it is not defined for these values")
    return Tested(name, n, float(found.statistic), float(found.pvalue))
