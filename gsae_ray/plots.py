"""The frontier as a picture."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from gsae_ray.curves import pareto
from gsae_ray.results import labels

COLUMNS_A_ROW = 3


def plot_frontier(rows: pd.DataFrame, pursuit: pd.DataFrame | None = None) -> Figure:
    """L0 (log axis) against loss recovered: a panel a site, a line through the Pareto points of each kind of SAE.

    Args:
        rows: as `results.frontier` returns them.
        pursuit: the same of gradient pursuit, as dashed lines.
    """
    drawn = [(rows.assign(label=labels(rows)), "-", "o", "")]
    if pursuit is not None:
        drawn.append((pursuit.assign(label=labels(pursuit)), "--", "s", ", pursuit"))
    sites, kinds = (sorted({value for frame, *_ in drawn for value in frame[name]}) for name in ("site", "label"))
    columns = min(COLUMNS_A_ROW, len(sites))
    height = -(-len(sites) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False).flat
    for axis, site in zip(axes, sites, strict=False):
        for (index, kind), (frame, dashes, marker, suffix) in itertools.product(enumerate(kinds), drawn):
            group = frame[(frame["site"] == site) & (frame["label"] == kind)]
            if group.empty:
                continue
            front = pareto(group["l0"].to_numpy(), group["loss_recovered"].to_numpy())
            line = group[front].sort_values("l0")
            style = {"color": f"C{index}", "marker": marker}
            axis.plot(line["l0"], line["loss_recovered"], dashes, label=kind + suffix, **style)
            rest = group[~front]
            axis.plot(rest["l0"], rest["loss_recovered"], "", alpha=0.35, markerfacecolor="none", **style)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(title=site, xlabel="L0 (active features a token)", ylabel="loss recovered")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    for axis in list(axes):
        axis.set_visible(False)
    return figure


def save_frontier(rows: pd.DataFrame, path: Path, pursuit: pd.DataFrame | None = None) -> None:
    """Writes the picture as PNG."""
    plot_frontier(rows, pursuit).savefig(path, dpi=130)
