"""The frontier as a picture for papers: PNG, SVG or PDF."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from gsae_ray.errors import UserError
from gsae_ray.files import write_atomically
from gsae_ray.results.comparison import own_saes, quality_of, without_stopped
from gsae_ray.results.curves import pareto
from gsae_ray.results.kinds import BARS, one_a_setting, with_bars, with_kinds
from gsae_ray.results.palette import Style, log_ticks, styles
from gsae_ray.results.picture_formats import check_picture
from gsae_ray.results.typed import with_columns

COLUMNS_A_ROW = 3
LEGEND = 32
"""The most characters of an origin in the legend; of a path, its end tells more."""


def plot_frontier(rows: pd.DataFrame, pursuit: pd.DataFrame | None = None, title: str = "") -> Figure:
    """L0 (log axis) against loss recovered: a panel a site, a line through the Pareto points of each kind of SAE.

    Without a language model it is against the explained variance (see `quality_of`).

    Kinds are as `results.kinds` tells them apart; each has a colour and a mark of its own. Seeds of one setting are one
    point (see `one_a_setting`, which has its error bars too). SAEs that another of their kind beats are points alone.
    References have marks of their own, one for all of an origin.

    Args:
        rows: as `results.frontier` returns them, or typed in, with `architecture`, `l0`, and `loss_recovered` or `fvu`;
            trials that a scheduler has stopped are not drawn.
        pursuit: the same of gradient pursuit, as dashed lines.
        title: of the whole picture.

    Raises:
        UserError: there is nothing to draw, or columns are missing or hold no numbers.
    """
    rows = without_stopped(with_columns(rows, ("architecture", "l0")))
    if rows.empty:
        raise UserError("plot: there is no SAE to draw that was trained to its end")
    everything = own_saes(rows).assign(pursued=False)
    references = rows.drop(everything.index)
    if pursuit is not None:
        everything = pd.concat([everything, pursuit.assign(pursued=True)], ignore_index=True)
    everything = with_kinds(everything)
    origins = list(references["origin"].unique()) if len(references) else []
    looks = styles(everything["kind"].unique(), origins)
    sites = sorted({*everything["site"], *references["site"]})
    columns = min(COLUMNS_A_ROW, len(sites))
    height = -(-len(sites) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * height + 0.3), layout="constrained")
    axes = list(figure.subplots(height, columns, squeeze=False).flat)
    for axis in axes[len(sites) :]:
        axis.remove()
    drawn = []
    for axis, site in zip(axes[: len(sites)], sites, strict=True):
        here = everything[everything["site"] == site]
        for (kind, pursued), group in here.groupby(["kind", "pursued"], sort=False):
            drawn.append(one_a_setting(group))
            _draw_kind(axis, drawn[-1], looks[kind], f"{kind}, pursuit" if pursued else kind, bool(pursued))
        for origin in origins:
            beside = references[(references["site"] == site) & (references["origin"] == origin)]
            if len(beside):
                drawn.append(with_bars(beside).assign(seeds=1))
                _draw_references(axis, drawn[-1], looks[origin], _shortened(origin))
        axis.set(title=site, xlabel="L0 (active features a token)", ylabel=quality_of(rows).name)
        _scale(axis)
    _add_legend(figure, _meaning_of_bars(pd.concat(drawn)))
    if title:
        figure.suptitle(title)
    return figure


def _draw_kind(axis: Axes, points: pd.DataFrame, look: Style, label: str, pursued: bool) -> None:
    """A line through the Pareto points, the others alone, and error bars."""
    front = pareto(points["l0"].to_numpy(float), points["quality"].to_numpy(float))
    style: dict[str, Any] = {"color": look.colour, "marker": look.mark.matplotlib}
    line: dict[str, Any] = {"linestyle": "--" if pursued else "-", "label": label}
    if pursued:
        line["markerfacecolor"] = "white"
    alone: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "none", "alpha": 0.45}
    for part, how in ((points[front], line), (points[~front], alone)):
        axis.plot(part["l0"], part["quality"], **how, **style)
        _add_bars(axis, part, str(look.colour))


def _draw_references(axis: Axes, points: pd.DataFrame, look: Style, label: str) -> None:
    mark = look.mark.matplotlib
    axis.plot(points["l0"], points["quality"], label=label, linestyle="none", marker=mark, color="black")
    _add_bars(axis, points, "black")


def _add_bars(axis: Axes, points: pd.DataFrame, colour: str) -> None:
    """Error bars of the points that have some."""
    x, y = (points[name].to_numpy(float) for name in ("l0", "quality"))
    xerr, yerr = (
        np.clip([centre - points[f"{name}_low"], points[f"{name}_high"] - centre], 0, None)
        for name, centre in (("l0", x), ("quality", y))
    )
    if np.isfinite([xerr, yerr]).any():
        axis.errorbar(x, y, yerr, xerr, fmt="none", ecolor=colour, elinewidth=1, alpha=0.7)


def _scale(axis: Axes) -> None:
    """A log axis with three numbers or more."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks = log_ticks(low, high)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(low, high)
    axis.grid(alpha=0.3)


def _meaning_of_bars(points: pd.DataFrame) -> str:
    """What the error bars are: `mean of 2 seeds ± 1 s.d.`, or `bars: 95 % over held-out text`, or both; empty: none."""
    seeds = sorted({int(count) for count in points["seeds"] if count > 1})
    alone = points.loc[points["seeds"] <= 1, list(BARS)].notna().any(axis=None)
    of_several = f"mean of {' or '.join(map(str, seeds))} seeds ± 1 s.d." if seeds else ""
    of_one = ("one seed: " if seeds else "bars: ") + "95 % over held-out text" if alone else ""
    return "; ".join(filter(None, (of_several, of_one)))


def _add_legend(figure: Figure, title: str) -> None:
    """One legend for all panels, below them: no point is under it."""
    found = [axis.get_legend_handles_labels() for axis in figure.axes]
    entries = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    width = figure.get_size_inches()[0]
    columns = max(1, min(len(entries), int(width * 10 / (6 + max(map(len, entries), default=1)))))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, title=title
    )


def _shortened(origin: str) -> str:
    return origin if len(origin) <= LEGEND else f"…{origin[1 - LEGEND :]}"


def save_frontier(rows: pd.DataFrame, path: Path, pursuit: pd.DataFrame | None = None, title: str = "") -> None:
    """Writes the picture as PNG, SVG or PDF, by the suffix of the path.

    Raises:
        UserError: it has another one.
    """
    check_picture(path)
    data = io.BytesIO()
    # Text stays text: it can be searched, and edited.
    with mpl.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):
        plot_frontier(rows, pursuit, title).savefig(data, format=path.suffix[1:].lower(), dpi=130)
    write_atomically(path, data.getvalue())
