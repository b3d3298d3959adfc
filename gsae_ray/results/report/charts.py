"""The charts of a report, as Vega-Lite writes them down. Which rows each shows is said beside it, in `Chart`.

Text and axes have `currentColor`, the page's own, so that charts follow it into the dark. Legends are the page's, too:
one for all charts, which wraps on a phone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from gsae_ray.evaluation.bootstrap import low_and_high
from gsae_ray.evaluation.metrics import METRICS
from gsae_ray.results.palette import Style, log_ticks
from gsae_ray.results.report.data import DENSITY, named, quality_columns

Spec = dict[str, Any]
ACTIVE = "L0 (active features a token)"
MEANINGS = {DENSITY: "share of tokens on which an alive feature is active, mean over these: L0 ÷ their number"}
"""What is told of columns that are no metrics."""
TRAININGS = {"loss": "loss", "active": ACTIVE, "dead": "share of dead features"}
"""What of a training is drawn -> what its axis says."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart, and which rows it shows."""

    id: str
    title: str
    label: str
    """What it shows, for whoever does not see it."""
    data: Literal["saes", "trainings", "snapshots", "grid"]
    """Of the page's data; of the site that the reader chose, unless `where` says which."""
    where: Mapping[str, str]
    """Column -> the value that its rows have."""
    needs: str
    """A column that its rows have a number in."""
    spec: Spec


def scales(styles: Mapping[str, Style]) -> dict[str, Spec]:
    """Colour and shape of each kind, as encodings."""
    names = list(styles)
    return {
        "color": {
            **{"field": "kind", "type": "nominal", "legend": None},
            "scale": {"domain": names, "range": [style.colour or "currentColor" for style in styles.values()]},
        },
        "shape": {
            **{"field": "kind", "type": "nominal", "legend": None},
            "scale": {"domain": names, "range": [style.mark.path for style in styles.values()]},
        },
    }


def _log_axis(field: str, title: str, values: pd.Series[Any], pad: float = 1.08) -> Spec:
    low, high = float(values.min()) / pad, float(values.max()) * pad
    ticks = log_ticks(low, high)
    return {
        **{"field": field, "type": "quantitative", "title": title},
        "scale": {"type": "log", "domain": [low, high], "nice": False},
        "axis": {"values": ticks, "format": "~g"},
    }


def _linear(field: str, title: str) -> Spec:
    return {
        **{"field": field, "type": "quantitative", "title": title},
        "scale": {"zero": False, "nice": True},
        "axis": {"format": ".6~g"},  # where all values are 0.98, the one number of the axis would be 1
    }


def _points(rows: pd.DataFrame, x: Spec, y: Spec, looks: Mapping[str, Spec], links: bool) -> list[Spec]:
    """Layers: the error bars that there are, and the points of SAEs with what the page tells of each."""
    ends = low_and_high(y["field"])
    bars = {"type": "rule", "opacity": 0.55, "strokeWidth": 1.2, "clip": True}
    across = {"x": {**x, "field": "l0_low"}, "x2": {"field": "l0_high"}, "y": y, "color": looks["color"]}
    upright = {"x": x, "y": {**y, "field": ends[0]}, "y2": {"field": ends[1]}, "color": looks["color"]}
    href = {"href": {"field": "page"}} if links else {}
    layers = [
        {"transform": [{"filter": f"isValid(datum['{end}'])"}], "mark": bars, "encoding": encoding}
        for end, encoding in (("l0_low", across), (ends[0], upright))
        if end in rows and rows[end].notna().any()  # Vega warns of a layer without data
    ]
    return [
        *layers,
        {
            "mark": {"type": "point", "filled": True, "size": 70, "tooltip": {"expr": "datum.told"}},
            "encoding": {
                **{"x": x, "y": y, **looks, **href},
                "opacity": {"condition": {"test": "datum.front", "value": 1}, "value": 0.45},
            },
        },
    ]


def frontier_charts(rows: pd.DataFrame, quality: str, looks: Mapping[str, Spec], links: bool) -> list[Chart]:
    """The frontier of each site."""
    charts = []
    for number, (site, here) in enumerate(rows.groupby("site")):
        x = _log_axis("l0", ACTIVE, pd.concat([here[name] for name in ("l0", "l0_low", "l0_high")]))
        y = _linear("quality", quality)
        line: Spec = {
            "transform": [{"filter": "datum.front && datum.own"}],
            "mark": {"type": "line", "strokeWidth": 1.8, "opacity": 0.8},
            "encoding": {"x": x, "y": y, "color": looks["color"], "order": {"field": "l0"}},
        }
        layers = [line, *_points(here, x, y, looks, links)]
        label = f"{quality} against L0 at {site}: a point for each SAE, with error bars; the table has the numbers"
        charts.append(
            Chart(f"frontier-{number}", str(site), label, "saes", {"site": str(site)}, "quality", _whole(layers, 340))
        )
    return charts


def quality_charts(rows: pd.DataFrame, quality: str, looks: Mapping[str, Spec], links: bool) -> list[Chart]:
    """Each other quality, and the density of features, against L0."""
    x = _log_axis("l0", ACTIVE, rows["l0"])
    charts = []
    for name in quality_columns(rows, quality):
        title = named(name)
        y = _log_axis(name, title, rows[name]) if name == DENSITY else _linear(name, title)
        layers = _points(rows, x, y, looks, links)
        if name in METRICS and METRICS[name].better == "one":
            rule = {"mark": {"type": "rule", "strokeDash": [4, 3], "color": "currentColor", "opacity": 0.6}}
            layers.insert(0, {**rule, "encoding": {"y": {"datum": 1}}})
        meaning = METRICS[name].meaning if name in METRICS else MEANINGS.get(name, "")
        caption = f"{title}: {meaning}" if meaning else title
        label = f"{title} against L0, a point for each SAE of the chosen site"
        charts.append(Chart(f"quality-{name}", caption, label, "saes", {}, name, _whole(layers, 220)))
    return charts


def snapshot_charts(drawn: Sequence[Mapping[str, Any]], quality: str, looks: Mapping[str, Spec]) -> list[Chart]:
    """Quality and L0 of snapshots against the tokens that they had been trained on, a line for each SAE."""
    charts = []
    for name, title in {"quality": quality, "fvu": named("fvu"), "l0": ACTIVE}.items():
        if not any(row.get(name) is not None for row in drawn):
            continue
        y = _linear(name, title)
        if name != "quality":
            y["scale"] = {"type": "log", "nice": True}
            y["axis"] = {"format": "~g", "tickCount": 5}
        x = {
            **{"field": "tokens", "type": "quantitative", "title": "tokens", "scale": {"type": "log", "nice": False}},
            "axis": {"format": "~s", "tickCount": 4},
        }
        order = {"detail": {"field": "trial"}, "order": {"field": "tokens"}}
        layers: Sequence[Spec] = [
            {"mark": {"type": "line", "strokeWidth": 1.3, "opacity": 0.7}, "encoding": order},
            {
                "mark": {"type": "point", "filled": True, "size": 45, "tooltip": {"expr": "datum.trial"}},
                "encoding": {"shape": looks["shape"]},
            },
        ]
        spec = {**_whole(layers, 220), "encoding": {"x": x, "y": y, "color": looks["color"]}}
        label = f"{title} of snapshots against tokens trained on, a line for each SAE of the chosen site"
        charts.append(Chart(f"snapshots-{name}", title, label, "snapshots", {}, name, spec))
    return charts


def training_charts(looks: Mapping[str, Spec]) -> list[Chart]:
    """Loss, L0 and dead features while SAEs were trained."""
    charts = []
    for name, title in TRAININGS.items():
        y = _linear(name, title)
        if name != "dead":
            y["scale"] = {"type": "log", "nice": True}
            y["axis"] = {"format": "~g", "tickCount": 5}
        encoding = {
            "x": {
                "field": "tokens",
                "type": "quantitative",
                "title": "tokens",
                "axis": {"format": "~s", "tickCount": 4},
            },
            **{"y": y, "color": looks["color"], "detail": {"field": "trial"}, "order": {"field": "tokens"}},
        }
        mark = {"type": "line", "strokeWidth": 1.3, "opacity": 0.75, "tooltip": {"expr": "datum.trial"}}
        positive = [{"filter": f"datum.{name} > 0"}] if name != "dead" else []
        spec = {**_whole([], 220), "transform": positive, "mark": mark, "encoding": encoding}
        label = f"{title} against tokens trained on, a line for each SAE of the chosen site"
        charts.append(Chart(f"training-{name}", title, label, "trainings", {}, name, spec))
    return charts


def grid_charts(grid: pd.DataFrame, quality: str) -> list[Chart]:
    """What each learning rate came to at each sparsity, a heat map for each kind of SAE with several rates."""
    charts = []
    for number, kind in enumerate(dict.fromkeys(grid["kind"])):
        place = {
            "x": {"field": "sparsity", "type": "ordinal", "title": "λ, k or target L0", "axis": {"labelAngle": 0}},
            "y": {"field": "lr", "type": "ordinal", "title": "learning rate", "sort": "descending"},
        }
        colour = {
            **{"field": "quality", "type": "quantitative", "title": quality},
            "scale": {"scheme": "cividis", "zero": False},
            "legend": {"orient": "top", "gradientLength": 140},
        }
        text = {"color": {"condition": {"test": "datum.bright", "value": "black"}, "value": "white"}}
        tooltip = [{"field": name, "format": ".4~g", "type": "quantitative"} for name in ("quality", "l0", "seeds")]
        layers: Sequence[Spec] = [
            {"mark": "rect", "encoding": {"color": colour, "tooltip": tooltip}},
            {"mark": {"type": "text", "fontSize": 11}, "encoding": {"text": {"field": "l0", "format": ".3~g"}, **text}},
        ]
        label = f"heat map of {quality} by learning rate and sparsity, {kind} SAEs of the chosen site; cells say L0"
        rates = grid.loc[grid["kind"] == kind, "lr"].nunique()
        spec = {**_whole(layers, 120 + 34 * rates), "encoding": place}
        charts.append(Chart(f"grid-{number}", str(kind), label, "grid", {"kind": kind}, "quality", spec))
    return charts


def _whole(layers: Sequence[Spec], height: int) -> Spec:
    """A chart as wide as the page gives it room."""
    return {"width": "container", "height": height, **({"layer": list(layers)} if layers else {})}
