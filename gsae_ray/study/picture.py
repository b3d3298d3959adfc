"""An analysis as a picture for papers: labels of either architecture, and mean differences with their intervals."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsae_ray.results.palette import styles
from gsae_ray.results.picture_formats import check_picture
from gsae_ray.study.analysis import Analysis
from gsae_ray.study.database import LABELS
from gsae_ray.study.told import named, p_of

SHADES = dict(zip(LABELS, (0.2, 0.55, 1.0), strict=True))
"""How opaque each label is drawn: the surer, the stronger."""

BLANK = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}


def plot_study(found: Analysis) -> Figure:
    """Two panels: shares of the labels, and a row for each group of pairs."""
    height = max(2.6, 1.4 + 0.34 * len(found.groups))
    figure = Figure(figsize=(10.4, height), layout="constrained")
    labels, differences = figure.subplots(1, 2, width_ratios=[1, 1.2])
    _draw_labels(labels, found)
    _draw_differences(differences, found)
    return figure


def _draw_labels(axis: Axes, found: Analysis) -> None:
    looks = styles(found.counts)
    for row, (architecture, counts) in enumerate(found.counts.items()):
        total, left = sum(counts.values()) or 1, 0.0
        for label in LABELS:
            share = counts[label] / total
            colour = looks[architecture].colour
            axis.barh(row, share, left=left, height=0.6, color=colour, alpha=SHADES[label], edgecolor="none")
            if share > 0.08:
                told = f"{label.capitalize()}\n{counts[label]}"
                ink = "white" if label == LABELS[-1] else "black"
                axis.text(left + share / 2, row, told, ha="center", va="center", fontsize=9, color=ink)
            left += share
    axis.set_yticks(range(len(found.counts)), list(found.counts))
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share of ratings", title="Is the feature interpretable?")
    axis.spines[["top", "right", "left"]].set_visible(False)


def _draw_differences(axis: Axes, found: Analysis) -> None:
    for row, group in enumerate(found.groups):
        of = group.found
        if of.mean is None:
            continue
        if of.low is not None and of.high is not None:
            axis.plot([of.low, of.high], [row, row], color="black", linewidth=1.6)
        axis.plot(of.mean, row, marker="o" if row == 0 else "s", color="black", markersize=6, linestyle="none")
        told = f"{of.mean:+.2f}, p {p_of(of.tested)}" if of.tested.p is not None else f"{of.mean:+.2f}"
        axis.annotate(told, (of.mean, row), (0, 6), textcoords="offset points", ha="center", fontsize=8, bbox=BLANK)
    axis.axvline(0, color="grey", linewidth=1, linestyle="--")
    axis.set_yticks(range(len(found.groups)), [f"{named(g)} ({g.found.pairs})" for g in found.groups])
    axis.set_ylim(len(found.groups) - 0.5, -0.7)
    axis.set(xlabel="mean difference with its 90 % interval", title=f"{found.better} − {found.base}, by pairs")
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def save_study(found: Analysis, path: Path) -> None:
    """Writes the picture as PNG, SVG or PDF, by the suffix of the path.

    Raises:
        UserError: it has another one.
    """
    check_picture(path)
    with mpl.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):  # text stays text
        plot_study(found).savefig(path, dpi=130)
