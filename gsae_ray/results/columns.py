"""The columns of a frontier: settings of SAEs, what was measured of them, and what a reader has added."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from gsae_ray.evaluation import metrics
from gsae_ray.evaluation.bootstrap import low_and_high
from gsae_ray.evaluation.metrics import METRICS

SETTINGS = ("run_id", "trial", "site", "architecture", "recipe", "d_sae", "sparsity", "lr", "seed", "tokens")
REST = (
    "on_frontier",
    "snapshot",
    "variant",
    "sink_share",
    "found_coefficient",
    "l1_units",
    "batch_size",
    "engine",
    "precision",
    "parent",
    "launch",
    "origin",
)
RATER = "rater"
"""The column that says which model has rated features (`gsae-ray rate`)."""
SPREAD = "_spread"
"""Ends the names of columns with the standard deviation of another column over seeds (`over_seeds`)."""
ALWAYS = ("architecture", "d_sae", "sparsity")
"""Columns that every table for readers shows."""
WHERE_THEY_DIFFER = (
    "site",
    "origin",
    "pursuit_l0",
    "recipe",
    "lr",
    "seed",
    "batch_size",
    "l1_units",
    "engine",
    "precision",
    "tokens",
    "snapshot",
)
"""Columns that they show where SAEs differ in them, in this order."""


def columns(rows: pd.DataFrame | None = None) -> list[str]:
    """The columns of a frontier: settings of each trial, its metrics, the rest, and the ends of intervals.

    Args:
        rows: of it; metrics of true features and of probes are columns only where some SAE has them.
    """
    measured = [*metrics.columns(), *([] if rows is None else beside(rows))]
    rated = [RATER] if any(name in metrics.RATED for name in measured) else []
    return [*SETTINGS, *measured, *REST, *rated, *ends(measured)]


def ends(measured: Iterable[str]) -> list[str]:
    """The columns with the ends of intervals: `l0_low`, `l0_high`, … of each metric that has them."""
    known = {*metrics.resampled(features=True), *(name for name, metric in METRICS.items() if metric.interval)}
    return [end for name in measured if name in known for end in low_and_high(name)]


def beside(rows: pd.DataFrame) -> list[str]:
    """The metrics of `metrics.BESIDE`, as far as some table row has them."""
    return [name for name in metrics.columns(beside=True) if rows[name].notna().any()]


def added_columns(rows: pd.DataFrame) -> list[str]:
    """The columns of numbers that a frontier does not have by itself, without ends of intervals and spreads."""
    own = {*columns(), *METRICS, *(f"{name}{SPREAD}" for name in rows)}
    added = [name for name in rows if name not in own and not name.endswith(("_low", "_high"))]
    return [name for name in added if pd.api.types.is_float_dtype(rows[name])]
