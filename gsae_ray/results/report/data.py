"""The numbers of a report as its charts read them: a JSON object for each SAE, training and cell of a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from gsae_ray.config.recipe import show
from gsae_ray.evaluation.bootstrap import low_and_high
from gsae_ray.evaluation.metrics import METRICS
from gsae_ray.results.columns import added_columns
from gsae_ray.results.comparison import own_saes
from gsae_ray.results.curves import pareto
from gsae_ray.results.frontier_table import with_intervals
from gsae_ray.results.kinds import BARS
from gsae_ray.results.report.records import Series

DENSITY = "density"
"""On which share of tokens an alive feature is active, on average: L0 ÷ number of alive features."""
POINTS, ALL_POINTS = 100, 20_000
"""The most points of a training that are drawn, and of all together."""
DIGITS = 5
"""Significant ones of what is drawn: the page stays small."""
NAMES = {"l0": "L0", "gamma": "γ", "fvu": "FVU", "kl": "KL", "ce_spliced": "cross-entropy", "mcc": "MCC"}
"""Column -> what the page calls it, where that is not its own name."""
TOLD = ("d_sae", "sparsity", "recipe", "lr", "seeds", "batch_size", "tokens", "engine", "origin")
"""Settings that the page tells of a point."""


def named(column: str) -> str:
    """What the page calls a column."""
    return NAMES.get(column, column.replace("_", " "))


def quality_columns(rows: pd.DataFrame, quality: str) -> list[str]:
    """The columns that tell how good SAEs are, beside the frontier's own; γ and FVU first, density last."""
    on_frontier = {"loss_recovered"} if quality == "loss recovered" else {"loss_recovered", "fvu"}
    known = {"quality", DENSITY}
    ours = [name for name, metric in METRICS.items() if metric.better is not None and name not in on_frontier]
    added = [name for name in added_columns(rows) if name not in known]
    first = [name for name in ("gamma", "fvu") if name in ours]
    wanted = [*first, *(name for name in ours if name not in first), *added, DENSITY]
    return [name for name in wanted if name in rows and np.isfinite(rows[name].astype(float)).any()]


def with_density(rows: pd.DataFrame) -> pd.DataFrame:
    alive = rows["alive_fraction"] * rows["d_sae"].astype(float)
    return rows.assign(**{DENSITY: rows["l0"] / alive.where(alive > 0)})


def saes_of(rows: pd.DataFrame, quality: str, pages: Mapping[str, str]) -> list[dict[str, Any]]:
    """What is drawn, and told, of each point.

    Args:
        rows: of a frontier, with `kind` and `with_density`, own ones as `one_a_setting` gives them.
        quality: what the frontier has beside L0.
        pages: run -> address.
    """
    own = set(own_saes(rows).index)
    front = pd.Series(False, index=rows.index)
    for _, group in rows.groupby(["site", "kind"]):
        front[group.index] = pareto(group["l0"].to_numpy(float), group["quality"].to_numpy(float))
    measured = quality_columns(rows, quality)
    ends = [end for name in measured for end in low_and_high(name) if end in rows]
    texts = {name: with_intervals(rows, name) for name in told_metrics(rows)}
    found = []
    for place, (index, row) in enumerate(rows.iterrows()):
        settings = {named(name): setting(row[name]) for name in TOLD if name in row and setting(row[name])}
        title = str(row["trial"] or row["origin"])
        if row["seeds"] > 1:
            title = f"{title}, and {row['seeds'] - 1:g} more: mean [one standard deviation to either side]"
        told = {"title": title, "kind": row["kind"], **settings}
        told |= {named(name): text[place] for name, text in texts.items()}
        found.append(
            {
                **{"site": row["site"], "kind": row["kind"], "own": index in own, "front": bool(front[index])},
                **{name: number(row[name]) for name in ("l0", "quality", *BARS, *measured, *ends)},
                **({"page": page} if (page := pages.get(str(row["run_id"]))) else {}),
                "told": told,
            }
        )
    return found


def told_metrics(rows: pd.DataFrame) -> list[str]:
    """The metrics of the frontier's table that some SAE has."""
    return [name for name, metric in METRICS.items() if metric.table and name in rows and rows[name].notna().any()]


def trainings_of(rows: pd.DataFrame, trainings: Mapping[str, Series]) -> list[dict[str, Any]]:
    """The training of each SAE as columns of numbers, thinned: fewer points each where there are many SAEs."""
    most = max(20, min(POINTS, ALL_POINTS // max(1, len(trainings))))
    found = []
    for _, row in rows.iterrows():
        series = trainings.get(str(row["run_id"]), {})
        steps = _thinned([step for step, _ in series.get("loss") or series.get("l0", [])], most)
        if not steps:
            continue
        drawn = {"loss": "loss", "active": "l0", "dead": "dead_fraction"}
        values = {name: dict(series.get(metric, [])) for name, metric in drawn.items()}
        numbers = {name: [number(by_step.get(step)) for step in steps] for name, by_step in values.items()}
        found.append({**{name: row[name] for name in ("trial", "site", "kind")}, "tokens": steps, **numbers})
    return found


def over_tokens_of(rows: pd.DataFrame, quality: str) -> list[dict[str, Any]]:
    """What is drawn of snapshots, and of what came of them.

    Args:
        rows: `Contents.over_tokens`, with `kind` and `quality`.
        quality: its name; FVU is not drawn twice.
    """
    measured = ["quality", "l0", *(["fvu"] if quality != "explained variance" else [])]
    return [
        {name: row[name] for name in ("trial", "site", "kind")}
        | {"tokens": int(row["tokens"])}
        | {name: number(row[name]) for name in measured}
        for _, row in rows.sort_values(["trial", "tokens"]).iterrows()
    ]


def _thinned(steps: list[int], most: int) -> list[int]:
    """At most so many of them, evenly spaced, with the first and the last."""
    if len(steps) <= most:
        return steps
    return [steps[place] for place in np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))]


def grid_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean quality and L0 over seeds of each learning rate and sparsity, of kinds that were trained with several rates.

    `bright`: whether the cell's colour is a bright one.
    """
    own = own_saes(rows)
    several = own.groupby(["site", "kind"])["lr"].transform("nunique") > 1
    keys = ["site", "kind", "lr", "sparsity"]
    grouped = own[several & own["sparsity"].notna()].groupby(keys, as_index=False)
    grid = grouped.agg(quality=("quality", "mean"), l0=("l0", "mean"), seeds=("seed", "nunique"))
    scale = grid.groupby(["site", "kind"])["quality"]
    return grid.assign(bright=grid["quality"] > (scale.transform("min") + scale.transform("max")) / 2)


def setting(value: Any) -> str:
    """A setting as text; empty where it is not known."""
    if pd.isna(value):
        return ""
    if isinstance(value, (int, np.integer)) and abs(int(value)) >= 1000:
        return f"{int(value):,}"
    return show(value.item() if isinstance(value, np.generic) else value)


def number(value: Any) -> float | None:
    """A number as JSON has it; None for what is no number."""
    if value is None or pd.isna(value) or not math.isfinite(float(value)):
        return None
    return float(f"{float(value):.{DIGITS}g}")
