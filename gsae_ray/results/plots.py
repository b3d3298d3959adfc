"""The frontier as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gsae_ray.results.comparison import labels, own_saes, quality_of, recipes_differ
from gsae_ray.results.curves import pareto

COLUMNS_A_ROW = 3
KINDS = ["architecture", "variant", "recipe", "d_sae", "tokens"]
"""The order of curves."""
MARKS = "*DXP^v<>"
"""Of references, by origin."""
LEGEND = 32
"""The most characters of an origin in the legend; of a path, its end tells more."""


def plot_frontier(rows: pd.DataFrame, pursuit: pd.DataFrame | None = None) -> Figure:
    """L0 (log axis) against loss recovered: a panel a site, a line through the Pareto points of each kind of SAE.

    Without a language model it is against the explained variance (see `quality_of`).

    Kinds are as `_curves` tells them apart. SAEs that another of their kind beats are points alone. References have
    marks of their own, one for all of an origin.

    Args:
        rows: as `results.frontier` returns them.
        pursuit: the same of gradient pursuit, as dashed lines.
    """
    everything = own_saes(rows).assign(pursued=False)
    references = rows.drop(everything.index)
    origins = list(references["origin"].unique()) if len(references) else []
    if pursuit is not None:
        everything = pd.concat([everything, pursuit.assign(pursued=True)], ignore_index=True)
    everything = everything.assign(label=_curves(everything)).sort_values([*KINDS, "l0"])
    quality = quality_of(rows)
    sites, kinds = sorted({*everything["site"], *references["site"]}), list(everything["label"].unique())
    columns = min(COLUMNS_A_ROW, len(sites))
    height = -(-len(sites) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * height), layout="constrained")
    axes = list(figure.subplots(height, columns, squeeze=False).flat)
    for axis in axes[len(sites) :]:
        axis.remove()
    for axis, site in zip(axes[: len(sites)], sites, strict=True):
        here = everything[everything["site"] == site]
        for (kind, pursued), group in here.groupby(["label", "pursued"], sort=False):
            front = pareto(group["l0"].to_numpy(), quality.of(group).to_numpy())
            style = {"color": f"C{kinds.index(kind)}", "marker": "s" if pursued else "o"}
            line = {"linestyle": "--" if pursued else "-", "label": f"{kind}, pursuit" if pursued else kind}
            points = {"linestyle": "none", "markerfacecolor": "none", "alpha": 0.35}
            for part, how in ((group[front], line), (group[~front], points)):
                axis.plot(part["l0"], quality.of(part), **how, **style)
        for number, origin in enumerate(origins):
            group = references[(references["site"] == site) & (references["origin"] == origin)]
            if len(group):
                how = {"linestyle": "none", "marker": MARKS[number % len(MARKS)], "color": "black"}
                axis.plot(group["l0"], quality.of(group), label=_shortened(origin), **how)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(title=site, xlabel="L0 (active features a token)", ylabel=quality.name)
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    return figure


def _curves(rows: pd.DataFrame) -> pd.Series[Any]:
    """The curve that each SAE is on: its label, with recipe, width and tokens where SAEs differ in them."""
    text = labels(rows)
    if recipes_differ(rows["recipe"]):
        text = text + " " + rows["recipe"]
    if rows.groupby(text)["d_sae"].nunique().gt(1).any():
        text = text + " w" + rows["d_sae"].astype(str)
    if rows["tokens"].nunique() > 1:
        text = text + rows["tokens"].map(" {:,} tokens".format)
    return text


def _shortened(origin: str) -> str:
    return origin if len(origin) <= LEGEND else f"…{origin[1 - LEGEND :]}"


def save_frontier(rows: pd.DataFrame, path: Path, pursuit: pd.DataFrame | None = None) -> None:
    """Writes the picture as PNG."""
    plot_frontier(rows, pursuit).savefig(path, dpi=130)
