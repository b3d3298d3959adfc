"""The page of a report: one HTML file that opens from disk, with all that it needs inside."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from gsae_ray.pages import embedded, page_file
from gsae_ray.results.columns import WHERE_THEY_DIFFER
from gsae_ray.results.comparison import labels, own_saes, quality_of
from gsae_ray.results.frontier_table import differing, with_intervals
from gsae_ray.results.kinds import one_a_setting, with_bars, with_kinds
from gsae_ray.results.palette import styles
from gsae_ray.results.report import charts
from gsae_ray.results.report.contents import Contents, described
from gsae_ray.results.report.data import (
    grid_of,
    named,
    over_tokens_of,
    saes_of,
    setting,
    told_metrics,
    trainings_of,
    with_density,
)
from gsae_ray.results.report.records import trained_tokens
from gsae_ray.version import __version__

SHOWN = 6
"""Lines of an answer, and of notes, that are shown at once."""


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    link: str = ""
    long: bool = False
    """Whether its text may be broken into lines."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def render(contents: Contents) -> str:
    """The page as HTML. All text is escaped, in JSON too: names of trials and errors are whatever somebody wrote."""
    rows = _drawn(contents.rows)
    quality = quality_of(rows).name
    own, points = own_saes(rows), _points(rows)
    styled = styles(with_kinds(own)["kind"].unique(), rows.drop(own.index)["kind"].unique())
    looks, links = charts.scales(styled), bool(contents.pages)
    trainings, grid = trainings_of(_one_a_run(own), contents.trainings), grid_of(rows)
    snapshots = over_tokens_of(_drawn(contents.over_tokens), quality) if len(contents.over_tokens) else []
    drawn = {
        "frontier": charts.frontier_charts(points, quality, looks, links),
        "quality": charts.quality_charts(points, quality, looks, links),
        "training": charts.training_charts(looks) if trainings else [],
        "snapshots": charts.snapshot_charts(snapshots, quality, looks),
        "grids": charts.grid_charts(grid, quality),
    }
    data = {
        "saes": saes_of(points, quality, contents.pages),
        "trainings": trainings,
        "snapshots": snapshots,
        "grid": grid.to_dict("records"),
        "charts": [dataclasses.asdict(chart) for group in drawn.values() for chart in group],
    }
    page = {
        "title": contents.title,
        "experiment": contents.experiment,
        "about": [*described(contents.about.settings, rows), f"launch {contents.launch}"],
        "answer": contents.answer,
        "shown": SHOWN,
        "frontier_told": _frontier_told(quality, links, bool((points["seeds"] > 1).any())),
        "tables": [_frontier_table(str(site), here, contents.pages) for site, here in rows.groupby("site")],
        "notes": list(contents.rows.attrs.get("notes", [])),
        "sites": sorted(set(rows["site"])),
        "styles": styled,
        "failures": _ended("Trials that failed for good", contents.failures),
        "stopped": _ended("Trials that the scheduler has stopped", contents.stopped),
        "cost": _cost(contents, own),
        "missing": _missing(contents),
        "made": f"made by gsae-ray {__version__} on {time.strftime('%Y-%m-%d %H:%M %z')}",
        **drawn,
    }
    # What is Markup is ours, or JSON that cannot end its element.
    style = page_file("colours.css") + _file("page.css")
    parts = {"style": style, "script": _file("page.js"), "vega": _vega(), "data": embedded(data)}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(_file("page.html"))
    return template.render(page=page, **{name: Markup(part) for name, part in parts.items()})


def _drawn(rows: pd.DataFrame) -> pd.DataFrame:
    """The table rows with what charts take: the kind, which is the origin of a reference, error bars, density."""
    own = own_saes(rows)
    kind = with_kinds(own)["kind"].reindex(rows.index)
    return with_density(with_bars(pd.DataFrame(rows).assign(kind=kind.fillna(rows.get("origin", kind)).astype(str))))


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """What is drawn: seeds of one setting as one point, and each reference."""
    own = own_saes(rows)
    points = one_a_setting(own)
    return pd.concat([points, rows.drop(own.index)], ignore_index=True) if len(own) < len(rows) else points


def _one_a_run(own: pd.DataFrame) -> pd.DataFrame:
    """The last SAE of each training, be it a snapshot."""
    last = own.sort_values("tokens", kind="stable").drop_duplicates("run_id", keep="last")
    return own[own.index.isin(last.index)]


def _file(name: str) -> str:
    return page_file(name, "gsae_ray.results.report")


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as JavaScript, 900 kB, in a second.

    Out of vl-convert, a package of the Vega project that carries them inside: no network when a report is written, and
    nobody else's scripts in this repository. (The package of plotly has its whole bundle only, 4.5 MB; altair takes
    Vega from vl-convert, too; uPlot, the smallest, has no package for Python.)
    """
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script")


def _frontier_told(quality: str, links: bool, seeds: bool) -> str:
    point, bars = "a point for each SAE", "Bars"
    if seeds:
        point = "seeds of one setting as one point, their mean, with one standard deviation to either side"
        bars = "Other bars"
    told = (
        f"{quality.capitalize()} against L0, {point}. {bars} are 95 % intervals over the held-out text. A line joins "
        "the points that no other of their kind beats; the others are pale."
    )
    return f"{told} A click opens the run in MLflow." if links else told


def _frontier_table(site: str, rows: pd.DataFrame, pages: Mapping[str, str]) -> Table:
    """The SAEs of a site: what tells them apart, and what was measured."""
    differ = differing(rows, (name for name in WHERE_THEY_DIFFER if name != "site"))
    columns: dict[str, list[str]] = {"architecture": list(labels(rows))}
    columns |= {name.replace("_", " "): list(map(setting, rows[name])) for name in ("d_sae", "sparsity", *differ)}
    if (found := rows["found_coefficient"]).notna().any():  # of trials with `target_l0`, whose sparsity is that
        columns["found coefficient"] = ["" if pd.isna(value) else f"{value:.4g}" for value in found]
    columns |= {named(name): with_intervals(rows, name) for name in told_metrics(rows)}
    columns["on frontier"] = ["yes" if on_frontier else "no" for on_frontier in rows["on_frontier"]]
    names = [str(row["trial"] or row["origin"]) for _, row in rows.iterrows()]
    linked = [pages.get(str(run), "") for run in rows["run_id"]]
    cells = [[Cell(text) for text in texts] for texts in zip(*columns.values(), strict=True)]
    lines = [[*line, Cell(name, page)] for line, name, page in zip(cells, names, linked, strict=True)]
    return Table(site, [*columns, "SAE"], lines)


def _ended(caption: str, ended: Sequence[tuple[str, str]]) -> Table | None:
    rows = [[Cell(trial), Cell(why, long=True)] for trial, why in ended]
    return Table(caption, ["trial", "why"], rows) if rows else None


def _cost(contents: Contents, own: pd.DataFrame) -> list[tuple[str, str]]:
    """What the launch took, by name, as far as it is known."""
    counters = contents.about.counters
    # Snapshots are no trainings of their own; where they alone are shown, what came of them is in `over_tokens`.
    trained = _one_a_run(pd.concat([own, contents.over_tokens], ignore_index=True))
    trained = trained[trained["run_id"].isin(own["run_id"])]
    early = sum(map(trained_tokens, contents.ended_early))
    ended = {"stopped": contents.stopped, "failed": contents.failures}
    beside = [f"{len(found):,} {how}" for how, found in ended.items() if found]
    cost: list[tuple[str, Any]] = [
        ("SAEs trained", ", ".join([f"{len(trained):,}", *beside])),
        ("tokens trained on, over all SAEs", f"{int(trained['tokens'].sum()) + early:,}"),
    ]
    if "rows_distinct" in counters:
        cost.append(("tokens that the activations are of", f"{int(counters['rows_distinct']):,}"))
    if "forward_ratio" in counters:
        cost.append(("forward ratio: runs of the model over its tokens", f"{counters['forward_ratio']:.2f}"))
    if counters.get("rows_repeated"):
        cost.append(("tokens run again after faults", f"{int(counters['rows_repeated']):,}"))
    if "evaluations" in counters:
        cost.append(("evaluations", f"{int(counters['evaluations']):,}"))
    if contents.trial_hours:
        cost.append(("trial-hours, by the trials' own clocks", f"{contents.trial_hours:.2f}"))
    return cost


def _missing(contents: Contents) -> list[str]:
    told = list(contents.missing)
    if not contents.pages:
        told.append("links to runs: they are there where the results were read from an MLflow server, by its address")
    return told
