"""The frontier as text: a table for each, with all in which its SAEs differ."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from gsae_ray.cli.tables import print_table
from gsae_ray.config.recipe import show
from gsae_ray.config.sections import OWN
from gsae_ray.evaluation.metrics import METRICS, RATED
from gsae_ray.results.columns import ALWAYS, WHERE_THEY_DIFFER
from gsae_ray.results.comparison import STOPPED_AT, labels, own_saes, table_metrics
from gsae_ray.results.frontier_table import differing, with_intervals

LAST_RESORT = ("parent", "launch")
"""Shown where nothing else tells two SAEs apart."""
NEEDED = ("l0", "loss_recovered", "fvu", "mcc", *RATED)
"""Metrics that are never left out where SAEs have them (`fvu`: without loss recovered); the others are, from the last
on, where the terminal is too narrow."""
FOUND = "found_coefficient"
"""Shown where some SAE was trained for an L0."""
TEXTS = ("origin", "architecture", "recipe", "engine", "precision", "parent", "launch")


def print_frontier(rows: pd.DataFrame, console: Console, mixed_tokens: bool = False, intervals: bool = False) -> None:
    """A table for each frontier, with the references of its site at its end; a star marks the SAEs on it.

    Args:
        rows: as `results.frontier` returns them.
        console: where they go.
        mixed_tokens: SAEs of different numbers of tokens share a frontier.
        intervals: metrics have theirs beside them.
    """
    measured = table_metrics(rows)
    needed = [name for name in NEEDED if name != "fvu" or "loss_recovered" not in measured]
    expendable = [_head(name) for name in reversed(measured) if name not in needed]
    rows = rows.assign(architecture=labels(rows))
    own = own_saes(rows)
    shared = mixed_tokens or own["tokens"].nunique() < 2
    names = [*_settings(own, ["site"] if shared else ["site", "tokens"]), *measured]
    names = [*(["origin"] if len(own) < len(rows) else []), *names]
    for title, group in _tables(rows, shared):
        console.print(f"{title} (* on the frontier)", style="italic", highlight=False, markup=False)
        columns = {
            _head(name): with_intervals(group, name)
            if intervals and name in measured
            else list(map(functools.partial(_text, name), group[name], group["origin"]))
            for name in names
        }
        columns["*"] = ["*" if on_frontier else "" for on_frontier in group["on_frontier"]]
        if STOPPED_AT in group and group[STOPPED_AT].notna().any():
            columns[""] = ["" if pd.isna(at) else f"stopped at {at:,.0f} tokens" for at in group[STOPPED_AT]]
        print_table(columns, console, texts=TEXTS, expendable=expendable)
        console.print()


def _tables(rows: pd.DataFrame, shared: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each table, with its title: a site, and a number of tokens unless SAEs of all numbers share one."""
    for site, at_site in rows.groupby("site"):
        own = own_saes(at_site)
        if shared or own.empty:
            yield str(site), at_site
        else:
            for tokens, group in own.groupby("tokens"):
                yield f"{site}, {tokens:,} tokens", pd.concat([group, at_site.drop(own.index)])


def _settings(rows: pd.DataFrame, elsewhere: Sequence[str]) -> list[str]:
    """The columns that tell SAEs apart, beside those that are shown `elsewhere`."""
    names = [*ALWAYS] + (["pursuit_l0"] if "pursuit_l0" in rows else [])
    names += [FOUND] if rows[FOUND].notna().any() else []
    names += [name for name in differing(rows, WHERE_THEY_DIFFER) if name not in {*elsewhere, *names}]
    for name in LAST_RESORT:
        if rows.duplicated([*elsewhere, *names]).any() and rows[name].nunique() > 1:
            names.append(name)
    return names


def _text(name: str, value: Any, origin: str) -> str:
    if (origin != OWN or name == FOUND) and name not in METRICS and pd.isna(value):  # nothing is known, or was found
        return ""
    if name == "tokens":
        return f"{value:,}"
    return f"{value:.4g}" if name in METRICS or name == FOUND else show(value)


def _head(name: str) -> str:
    """A column's name as it stands over the table."""
    return name.replace("_", " ")
