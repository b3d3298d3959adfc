"""Curves of L0 against quality: Pareto points, the knee, the area they dominate, and how one compares with another.

numpy only; `comparison` has the same for data frames, `intervals` for resampled sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gsae_ray.evaluation.metrics import Array


def pareto(l0: Array, quality: Array) -> NDArray[np.bool_]:
    """Which points no other point beats: none has at most its L0 and at least its quality, one of them strictly."""
    worse_or_equal = (l0[:, None] <= l0[None, :]) & (quality[:, None] >= quality[None, :])
    strictly = (l0[:, None] < l0[None, :]) | (quality[:, None] > quality[None, :])
    beaten: NDArray[np.bool_] = np.any(worse_or_equal & strictly, axis=0)
    return ~beaten


def log_l0_at(l0: Array, quality: Array, wanted: Array) -> Array:
    """The logarithm of L0 of a curve at the `wanted` qualities: linear between Pareto points, NaN outside them."""
    kept = pareto(l0, quality)
    order = np.argsort(quality[kept], kind="stable")
    log_l0, quality = np.log(l0[kept][order]), quality[kept][order]
    if len(quality) < 2:
        return np.full(np.shape(wanted), np.nan)
    return np.interp(wanted, quality, log_l0, left=np.nan, right=np.nan)


def l0_ratio(better: tuple[Array, Array], base: tuple[Array, Array], points: int = 21) -> float:
    """Geometric mean of L0 ÷ L0 at equal quality, over the range that both curves cover; NaN where there is none.

    Curves, and their ranges, are those of the Pareto points: what another point beats changes nothing.

    Args:
        better: (L0, quality) of each SAE of the one curve.
        base: the same of the curve that it is compared with.
        points: qualities at which the curves are compared, evenly spaced over the common range.
    """
    if not len(better[0]) or not len(base[0]):
        return float("nan")
    fronts = [quality[pareto(l0, quality)] for l0, quality in (better, base)]
    low, high = max(quality.min() for quality in fronts), min(quality.max() for quality in fronts)
    if not low < high:
        return float("nan")
    wanted = np.linspace(low, high, points)
    differences = log_l0_at(*better, wanted) - log_l0_at(*base, wanted)
    finite = differences[np.isfinite(differences)]
    return float(np.exp(finite.mean())) if len(finite) else float("nan")


def quality_gap(better: tuple[Array, Array], base: tuple[Array, Array], points: int = 21) -> float:
    """Mean difference of quality at equal L0, over the range of L0 that both curves cover; NaN where there is none.

    Curves are linear in log L0 between Pareto points.

    Args:
        better: (L0, quality) of each SAE of the one curve.
        base: the same of the curve that it is compared with.
        points: values of L0 at which the curves are compared, evenly spaced in log L0 over the common range.
    """
    if not len(better[0]) or not len(base[0]):
        return float("nan")
    curves = [_front(*curve) for curve in (better, base)]
    low, high = max(log_l0[0] for log_l0, _ in curves), min(log_l0[-1] for log_l0, _ in curves)
    if not low < high:
        return float("nan")
    wanted = np.linspace(low, high, points)
    of_better, of_base = (np.interp(wanted, *curve) for curve in curves)
    return float((of_better - of_base).mean())


def hypervolume(l0: Array, quality: Array, reference: tuple[float, float]) -> float:
    """The area of (log L0 × quality) that the points dominate, up to the reference; NaN where there are none.

    Args:
        l0: of each SAE.
        quality: of each.
        reference: (L0, quality) of the worst corner: what has a higher L0, or a lower quality, adds nothing.
    """
    if not len(l0):
        return float("nan")
    worst_l0, worst = reference
    inside = (l0 < worst_l0) & (quality > worst)
    if not inside.any():
        return 0.0
    log_l0, quality = _front(l0[inside], quality[inside])
    return float(np.sum(np.diff(quality, prepend=worst) * (np.log(worst_l0) - log_l0)))


def above_chord(l0: Array, quality: Array) -> Array:
    """How far each Pareto point lies above the straight line between the first and the last; NaN of other points.

    In units of the height of the curve, log L0 and quality being scaled to 0 … 1 between the ends (Satopää et al. 2011,
    "Kneedle"). The point with the largest is the knee, where there is any above 0.
    """
    found, kept = np.full(len(l0), np.nan), pareto(l0, quality)
    log_l0, height = np.log(l0[kept]), quality[kept]
    if len(np.unique(log_l0)) > 1:
        found[kept] = (height - height.min()) / np.ptp(height) - (log_l0 - log_l0.min()) / np.ptp(log_l0)
    return found


def _front(l0: Array, quality: Array) -> tuple[Array, Array]:
    """(log L0, quality) of the Pareto points, both rising."""
    kept = pareto(l0, quality)
    order = np.argsort(l0[kept], kind="stable")
    return np.log(l0[kept][order]), quality[kept][order]
