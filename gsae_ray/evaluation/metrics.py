"""What an evaluation gives: sums of every held-out context, and the metrics that follow from them. numpy only.

Each metric is a ratio of sums, never a mean of ratios. It is written for arrays, so that the same lines give the
metric of a whole evaluation and those of a thousand resampled ones (see `intervals`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Sums = Mapping[str, Any]
"""Name of `SUMS` -> the sum over some contexts: a number, or an array with one sum for each choice of contexts."""

METRICS = {
    "l0": "mean number of active features of a row",
    "loss_recovered": "1 − (CE(x̂) − CE(clean)) / (CE(zero) − CE(clean)); may exceed 1 or be negative, never clipped",
    "gamma": "relative reconstruction bias E‖x̂‖² / E[x̂·x]; below 1 is shrinkage",
    "fvu": "fraction of variance unexplained, E‖x − x̂‖² / E‖x − E x‖²",
    "kl": "KL(clean ‖ spliced) in nats, mean over positions",
    "ce_clean": "next-token loss in nats",
    "ce_spliced": "next-token loss with x̂ in place of x",
    "ce_zero": "next-token loss with 0 in place of x",
    "alive_fraction": "share of features that were active on some held-out row",
    "rows": "rows evaluated",
}
"""Name -> meaning."""

SUMS = {
    "rows": "rows",
    "active": "active features",
    "x_sq": "‖x‖²",
    "x_hat_sq": "‖x̂‖²",
    "x_hat_x": "x̂·x",
    "error_sq": "‖x − x̂‖²",
    "centred_sq": "‖x − E x‖², the mean being that of all held-out rows",
    "positions": "positions whose next token is scored",
    "nll_clean": "−ln p(next token) of the model as it is",
    "nll_spliced": "the same with x̂ in place of x",
    "nll_zero": "the same with 0 in place of x",
    "kl": "KL(clean ‖ spliced)",
}
"""Name -> what is summed, over the rows (or scored positions) of a context."""


class Evaluation(NamedTuple):
    """An SAE on the held-out contexts of its site."""

    metrics: dict[str, float]
    """Every one of `METRICS`."""
    sequences: dict[str, list[float]]
    """Every one of `SUMS`, a number for each held-out context in their fixed order."""


def l0(s: Sums) -> Array:
    return _ratio(s["active"], s["rows"])


def loss_recovered(s: Sums) -> Array:
    return 1 - _ratio(ce_spliced(s) - ce_clean(s), ce_zero(s) - ce_clean(s))


def gamma(s: Sums) -> Array:
    return _ratio(s["x_hat_sq"], s["x_hat_x"])


def fvu(s: Sums) -> Array:
    return _ratio(s["error_sq"], s["centred_sq"])


def kl(s: Sums) -> Array:
    return _ratio(s["kl"], s["positions"])


def ce_clean(s: Sums) -> Array:
    return _ratio(s["nll_clean"], s["positions"])


def ce_spliced(s: Sums) -> Array:
    return _ratio(s["nll_spliced"], s["positions"])


def ce_zero(s: Sums) -> Array:
    return _ratio(s["nll_zero"], s["positions"])


RATIOS: dict[str, Callable[[Sums], Array]] = {
    function.__name__: function for function in (l0, loss_recovered, gamma, fvu, kl, ce_clean, ce_spliced, ce_zero)
}
"""The metrics that follow from `SUMS`, by name."""


def from_sums(sequences: Mapping[str, list[float]], alive_fraction: float) -> dict[str, float]:
    """Every one of `METRICS`, from the sums of all contexts."""
    totals = {name: np.sum(values) for name, values in sequences.items()}
    ratios = {name: float(ratio(totals)) for name, ratio in RATIOS.items()}
    return {**ratios, "alive_fraction": alive_fraction, "rows": float(totals["rows"])}


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Array:
    """NaN where the denominator is 0: shrinkage of what gives nothing, loss recovered where nothing can be lost."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    defined = denominator != 0
    return np.where(defined, numerator / np.where(defined, denominator, 1), np.nan)
