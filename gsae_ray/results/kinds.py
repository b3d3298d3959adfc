"""What the pictures of a frontier draw: its kinds of SAEs, a curve each, and how far each point is sure."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gsae_ray.evaluation.bootstrap import low_and_high
from gsae_ray.evaluation.metrics import METRICS
from gsae_ray.results.columns import SPREAD
from gsae_ray.results.comparison import LOSS_RECOVERED, labels, quality_of, recipes_differ
from gsae_ray.results.seeds import over_seeds, setting_of

ORDER = ["architecture", "variant", "recipe", "d_sae", "tokens"]
"""Of curves."""
BARS = ("l0_low", "l0_high", "quality_low", "quality_high")
"""Columns with the ends of error bars."""


def _curve_names(rows: pd.DataFrame) -> pd.Series[Any]:
    """The curve that each SAE is on: its label, with recipe, width and tokens where SAEs differ in them."""
    text = labels(rows)
    if recipes_differ(recipe for recipe in rows["recipe"] if recipe):  # numbers of a paper need not say it
        text = text + rows["recipe"].map(lambda recipe: f" {recipe}" if recipe else "")
    if rows.groupby(text)["d_sae"].nunique().gt(1).any():
        text = text + rows["d_sae"].map(" w{:.0f}".format).where(rows["d_sae"].notna(), "")
    if rows["tokens"].nunique() > 1:
        text = text + rows["tokens"].map(" {:,.0f} tokens".format).where(rows["tokens"].notna(), "")
    return text


def with_kinds(rows: pd.DataFrame) -> pd.DataFrame:
    """The table rows with `kind`, the curve that each is on, sorted by curve and L0."""
    return rows.assign(kind=_curve_names(rows)).sort_values([*ORDER, "l0"])


def with_bars(rows: pd.DataFrame) -> pd.DataFrame:
    """The table rows with `quality` (see `quality_of`), and the ends of 95 % intervals of that and of L0 (`BARS`).

    NaN where an SAE has no interval.
    """
    quality = quality_of(rows)
    found = rows.assign(quality=quality.of(rows).astype(float))
    l0, loss, fvu = (low_and_high(name) for name in ("l0", "loss_recovered", "fvu"))
    columns = [*l0, *(loss if quality == LOSS_RECOVERED else fvu[::-1])]
    for column, bar in zip(columns, BARS, strict=True):
        found[bar] = rows[column].astype(float) if column in rows else float("nan")
    if quality != LOSS_RECOVERED:
        found[["quality_low", "quality_high"]] = 1 - found[["quality_low", "quality_high"]]
    return found


def one_a_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """A table row for each setting, with `quality`, error bars, `seeds`, and `trial` and `run_id` of the first seed.

    Where there are several seeds the point is their mean, and its bars, of other metrics too, are one standard
    deviation to either side; else they are the ends of the SAE's intervals over held-out text.
    """
    if rows.empty:
        return with_bars(rows).assign(seeds=0)
    first = rows[~pd.Series(setting_of(rows), index=rows.index).duplicated()].reset_index(drop=True)
    points = over_seeds(rows)
    several = points["seeds"] > 1
    for name in (name for name in METRICS if name in rows):
        for end, sign in zip(low_and_high(name), (-1, 1), strict=True):
            if end in rows or name in ("l0", "loss_recovered", "fvu"):
                alone = first[end].astype(float) if end in first else float("nan")
                points[end] = (points[name] + sign * points[f"{name}{SPREAD}"]).where(several, alone)
    return with_bars(points.assign(**{name: first[name] for name in ("trial", "run_id") if name in first}))
