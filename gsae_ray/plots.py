"""The frontier as a picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from gsae_ray.results import labels, pareto

COLUMNS_A_ROW = 3


def plot_frontier(rows: pd.DataFrame) -> Figure:
    """L0 (log axis) against loss recovered: a panel a site, a line through the Pareto points of each kind of SAE.

    Args:
        rows: as `results.frontier` returns them.
    """
    sites = sorted(set(rows["site"]))
    rows = rows.assign(label=labels(rows))
    kinds = sorted(set(rows["label"]))
    columns = min(COLUMNS_A_ROW, len(sites))
    height = -(-len(sites) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False).flat
    for axis, site in zip(axes, sites, strict=False):
        for index, kind in enumerate(kinds):
            group = rows[(rows["site"] == site) & (rows["label"] == kind)]
            if group.empty:
                continue
            front = pareto(group["l0"].to_numpy(), group["loss_recovered"].to_numpy())
            line = group[front].sort_values("l0")
            color = f"C{index}"
            axis.plot(line["l0"], line["loss_recovered"], "o-", color=color, label=kind)
            rest = group[~front]
            axis.plot(rest["l0"], rest["loss_recovered"], "o", color=color, alpha=0.35, markerfacecolor="none")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(title=site, xlabel="L0 (active features a token)", ylabel="loss recovered")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    for axis in list(axes):
        axis.set_visible(False)
    return figure


def save_frontier(rows: pd.DataFrame, path: Path) -> None:
    """Writes the picture as PNG."""
    plot_frontier(rows).savefig(path, dpi=130)
