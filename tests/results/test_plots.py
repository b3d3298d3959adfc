"""The picture of the frontier, as matplotlib's own objects hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from gsae_ray.errors import UserError
from gsae_ray.results.plots import plot_frontier, save_frontier


def rows_of(*points: tuple[float, float], sites: int = 1, **columns: Any) -> pd.DataFrame:
    """SAEs of one kind, the same at each site."""
    kind = {"architecture": "gated", "variant": "", "recipe": "norm_weighted/modern", "d_sae": 16, "tokens": 1024}
    rows = [
        {**kind, "site": f"blocks.{site}.mlp", "l0": l0, "loss_recovered": quality, **columns}
        for site in range(sites)
        for l0, quality in points
    ]
    return pd.DataFrame(rows)


def curves(axis: Axes) -> dict[str, Line2D]:
    """By the name in the legend."""
    return {str(line.get_label()): line for line in axis.lines if not str(line.get_label()).startswith("_")}


def data(line: Line2D) -> list[list[float]]:
    return [[float(value) for value in pair] for pair in np.column_stack([line.get_xdata(), line.get_ydata()])]


@pytest.mark.parametrize("sites", range(1, 10))
def test_every_site_has_its_panel_and_no_panel_is_empty(sites: int) -> None:
    figure = plot_frontier(rows_of((1, 0.5), (2, 0.6), sites=sites))
    assert [axis.get_title() for axis in figure.axes] == [f"blocks.{site}.mlp" for site in range(sites)]
    assert all(axis.get_visible() and data(curves(axis)["gated"]) == [[1, 0.5], [2, 0.6]] for axis in figure.axes)


def test_a_line_joins_the_frontier_in_order_of_l0_and_beaten_saes_are_points_alone() -> None:
    (axis,) = plot_frontier(rows_of((8, 0.9), (4, 0.5), (1, 0.6), (2, 0.8), (9, 0.7))).axes
    joined, points = axis.lines
    assert data(joined) == [[1, 0.6], [2, 0.8], [8, 0.9]]
    assert joined.get_linestyle() == "-"
    assert data(points) == [[4, 0.5], [9, 0.7]]
    assert points.get_linestyle() == "None" and points.get_marker() == "o"
    assert points.get_color() == joined.get_color()


def test_numbers_of_a_paper_are_drawn_alone_and_beside_a_sweep() -> None:
    paper = pd.DataFrame([("topk", 4, 0.7), ("topk", 8, 0.8)], columns=["architecture", "l0", "loss_recovered"])
    (axis,) = plot_frontier(paper).axes
    assert data(curves(axis)["topk"]) == [[4, 0.7], [8, 0.8]]
    widths = [rows_of((1, 0.5), d_sae=width, tokens=width, origin="own") for width in (512, 1024)]
    beside = pd.concat([*widths, paper.assign(site="blocks.0.mlp")], ignore_index=True)
    (axis,) = plot_frontier(beside).axes
    assert set(curves(axis)) == {"topk", "gated w512 512 tokens", "gated w1024 1,024 tokens"}
    fvu = paper.rename(columns={"loss_recovered": "fvu"})
    assert plot_frontier(fvu).axes[0].get_ylabel() == "explained variance"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("quickstart", r"^rows: a pandas.DataFrame is meant, not 'quickstart'; "),
        (rows_of((1, 0.5)).drop(columns="l0"), "^rows: there is no column 'l0'"),
        (rows_of((1, 0.5)).astype({"l0": object}).assign(l0="8"), "^l0: '8' is no number; "),
    ],
)
def test_what_cannot_be_drawn_is_one_line(rows: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plot_frontier(rows)


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ({"d_sae": 512}, {"d_sae": 1024}, ["gated w512", "gated w1024"]),
        ({"tokens": 60_000}, {"tokens": 200_000}, ["gated 60,000 tokens", "gated 200,000 tokens"]),
        ({"recipe": "paper/modern"}, {"recipe": "paper/paper"}, ["gated paper/modern", "gated paper/paper"]),
        ({"variant": ""}, {"variant": "tied=false"}, ["gated", "gated tied=false"]),
        ({"d_sae": 512}, {"d_sae": 768, "architecture": "standard"}, ["gated", "standard"]),
    ],
)
def test_saes_of_different_kinds_are_different_curves(
    one: dict[str, Any], other: dict[str, Any], names: list[str]
) -> None:
    """Though all SAEs of the one are better than those of the other."""
    rows = pd.concat([rows_of((1, 0.5), (2, 0.6), **one), rows_of((1, 0.7), (2, 0.8), **other)], ignore_index=True)
    (axis,) = plot_frontier(rows).axes
    found = curves(axis)
    assert list(found) == names
    assert [data(line) for line in found.values()] == [[[1, 0.5], [2, 0.6]], [[1, 0.7], [2, 0.8]]]
    assert len({line.get_color() for line in found.values()}) == 2


def test_pursuit_has_the_colour_of_its_saes_though_only_some_were_pursued() -> None:
    narrow, wide = rows_of((1, 0.5), (2, 0.6), d_sae=512), rows_of((1, 0.7), (2, 0.8), d_sae=1024)
    (axis,) = plot_frontier(pd.concat([narrow, wide], ignore_index=True), wide.assign(pursuit_l0=4)).axes
    found = curves(axis)
    assert list(found) == ["gated w512", "gated w1024", "gated w1024, pursuit"]
    assert found["gated w1024"].get_color() == found["gated w1024, pursuit"].get_color()
    assert found["gated w1024, pursuit"].get_linestyle() == "--"


def test_references_are_marks_of_their_own_one_for_all_of_an_origin_and_on_no_curve() -> None:
    long = "/work/some/where/else/" + "blocks.2.hook_resid_post"
    known = rows_of((1, 0.5), (2, 0.6), origin="own", sites=2)
    others = rows_of((1, 0.9), (4, 0.95), origin="Scope", recipe="", tokens=None)
    rows = pd.concat([known, others, rows_of((3, 0.1), origin=long, recipe="", tokens=None)], ignore_index=True)
    first, second = plot_frontier(rows).axes
    found = curves(first)
    assert list(found) == ["gated", "Scope", "…e/else/blocks.2.hook_resid_post"]
    assert data(found["gated"]) == [[1, 0.5], [2, 0.6]]
    assert data(found["Scope"]) == [[1, 0.9], [4, 0.95]]
    assert found["Scope"].get_linestyle() == "None" and found["Scope"].get_color() == "black"
    assert len({line.get_marker() for line in found.values()}) == 3
    assert list(curves(second)) == ["gated"]


def bars(axis: Axes) -> list[list[list[float]]]:
    """The error bars of an axis, as pairs of points: across, then upright."""
    segments = [segment for part in axis.collections for segment in cast(LineCollection, part).get_segments()]
    return [np.round(segment, 6).tolist() for segment in segments]


def test_bars_are_the_intervals_of_an_sae() -> None:
    ends: dict[str, Any] = {"l0_low": 0.9, "l0_high": 1.2, "loss_recovered_low": 0.4, "loss_recovered_high": 0.55}
    (axis,) = plot_frontier(rows_of((1, 0.5), **ends)).axes
    assert bars(axis) == [[[0.9, 0.5], [1.2, 0.5]], [[1, 0.4], [1, 0.55]]]


def test_the_picture_says_what_its_bars_are() -> None:
    ends: dict[str, Any] = {"l0_low": 0.9, "l0_high": 1.2, "loss_recovered_low": 0.4, "loss_recovered_high": 0.55}
    seeds = [rows_of((1, 0.5), seed=seed, sparsity=1.0, **ends) for seed in range(3)]
    other = rows_of((2, 0.6), seed=0, sparsity=2.0, **ends)

    def said(*parts: pd.DataFrame) -> str:
        (legend,) = plot_frontier(pd.concat(parts, ignore_index=True)).legends
        return legend.get_title().get_text()

    assert said(rows_of((1, 0.5))) == ""
    assert said(other) == "bars: 95 % over held-out text"
    assert said(*seeds) == "mean of 3 seeds ± 1 s.d."
    assert said(*seeds, other) == "mean of 3 seeds ± 1 s.d.; one seed: 95 % over held-out text"


def test_seeds_of_one_setting_are_one_point_with_their_spread() -> None:
    """Also those of a setting whose SAEs have intervals of their own."""
    own: dict[str, Any] = {"l0_low": 0.9, "l0_high": 1.2, "loss_recovered_low": 0.4, "loss_recovered_high": 0.55}
    seeds = [rows_of(point, seed=seed, sparsity=1.0, **own) for seed, point in enumerate([(1, 0.5), (3, 0.7)])]
    (axis,) = plot_frontier(pd.concat(seeds, ignore_index=True)).axes
    (mean,) = [line for line in axis.lines if len(data(line))]
    assert data(mean) == [[2, 0.6]]
    across, upright = np.array(bars(axis))
    assert np.ptp(across[:, 0]) == pytest.approx(2 * 2**0.5, abs=1e-5)
    assert np.ptp(upright[:, 1]) == pytest.approx(2 * 0.1 * 2**0.5, abs=1e-5)


def test_the_legend_is_outside_of_the_axes_and_the_axis_has_numbers_enough() -> None:
    figure = plot_frontier(rows_of((31, 0.5), (38, 0.6), sites=2), title="small: model builtin")
    figure.canvas.draw()
    (legend,) = figure.legends
    assert not any(axis.get_window_extent().overlaps(legend.get_window_extent()) for axis in figure.axes)
    assert [text.get_text() for text in legend.get_texts()] == [
        "gated"
    ] and figure.get_suptitle() == "small: model builtin"
    for axis in figure.axes:
        low, high = axis.get_xlim()
        assert sum(low <= tick <= high for tick in axis.get_xticks()) >= 3
        assert len({label.get_text() for label in axis.get_xticklabels()}) == len(axis.get_xticks())


@pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_picture_is_written_as_its_suffix_says(tmp_path: Path, suffix: str, begin: bytes) -> None:
    save_frontier(rows_of((1, 0.5), (2, 0.6), sites=4), tmp_path / f"frontier.{suffix}")
    assert (tmp_path / f"frontier.{suffix}").read_bytes().startswith(begin)
