"""Whether the best value of a setting is at the edge of those that a sweep tried, beyond which may be a better one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gsae_ray.config.recipe import show
from gsae_ray.results.comparison import curve, labels, own_saes, without_stopped
from gsae_ray.results.curves import above_chord, hypervolume

GRIDS = {"lr": "lr", "sparsity": "sparsity (λ, k or target L0)", "d_sae": "width"}
"""Column -> what a note calls it."""


def at_edges(rows: pd.DataFrame) -> list[str]:
    """A sentence for each setting whose best value is the smallest or the largest of its grid.

    For one kind of SAE at one site, the best learning rate, or width, is the one whose SAEs dominate the largest area
    of (log L0 × quality), up to the worst corner of all of that kind there. The best λ is that of the knee of the
    frontier (`curves.above_chord`), among SAEs of its learning rate and width: any λ is right for some L0.

    Args:
        rows: of a frontier.
    """
    found: dict[tuple[str, str, str, str, int], list[str]] = {}
    rows = without_stopped(own_saes(rows))
    for (site, _, kind), group in rows.groupby(["site", "tokens", labels(rows)], sort=False):
        for name, value, end, tried in _edges(group):
            found.setdefault((name, value, end, str(kind), tried), []).append(str(site))
    return [
        f"{GRIDS[name]}: {value}, the {end}est of {tried} tried, is the best for {kind} SAEs at "
        f"{', '.join(dict.fromkeys(sites))}; a {end}er one may be better"
        for (name, value, end, kind, tried), sites in found.items()
    ]


def _edges(rows: pd.DataFrame) -> Iterator[tuple[str, str, str, int]]:
    """(column, value, `larg` or `small`, number of values) of each setting whose best value is at an end."""
    l0, quality = curve(rows)
    worst = float(l0.max()), float(quality.min())
    for name in ("lr", "d_sae"):
        values = np.unique(rows[name])
        chosen = [(rows[name] == value).to_numpy() for value in values]
        areas = np.array([hypervolume(l0[mask], quality[mask], worst) for mask in chosen])
        best = int(areas.argmax())
        if np.isclose(areas, areas[best]).sum() == 1:  # no two that are as good
            yield from _at_end(name, values, best)
    height = np.nan_to_num(above_chord(l0, quality))
    if height.max() > 0 and rows["l1_units"].nunique() == 1:  # else λ is no one scale
        knee = rows.iloc[int(height.argmax())]
        beside = rows[(rows["lr"] == knee["lr"]) & (rows["d_sae"] == knee["d_sae"])]
        values = np.unique(beside["sparsity"].dropna())
        yield from _at_end("sparsity", values, int(np.searchsorted(values, knee["sparsity"])))


def _at_end(name: str, values: NDArray[Any], best: int) -> Iterator[tuple[str, str, str, int]]:
    """As `_edges`, of one setting: nothing where the best value is within its grid, or alone."""
    if len(values) > 1 and best in (0, len(values) - 1):
        yield name, show(values[best].item()), "larg" if best else "small", len(values)
