"""Curves of L0 against quality: the Pareto points of SAEs, and how much less L0 one curve needs than another.

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

    Args:
        better: (L0, quality) of each SAE of the one curve.
        base: the same of the curve that it is compared with.
        points: qualities at which the curves are compared, evenly spaced over the common range.
    """
    low = max(quality.min() for _, quality in (better, base))
    high = min(quality.max() for _, quality in (better, base))
    if not low < high:
        return float("nan")
    wanted = np.linspace(low, high, points)
    differences = log_l0_at(*better, wanted) - log_l0_at(*base, wanted)
    finite = differences[np.isfinite(differences)]
    return float(np.exp(finite.mean())) if len(finite) else float("nan")
