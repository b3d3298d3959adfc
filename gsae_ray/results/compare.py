"""How kinds of SAEs compare: L0 at equal quality, quality at equal L0, shrinkage and area, with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gsae_ray.errors import UserError
from gsae_ray.evaluation.bootstrap import ends_of
from gsae_ray.evaluation.metrics import Array
from gsae_ray.results import curves
from gsae_ray.results.compared import Comparison, count
from gsae_ray.results.groups import (
    base_of,
    check_alike,
    check_columns,
    differ_in_kind,
    groups_of,
    in_order,
    kinds_of_groups,
    of_other_kinds,
    parts,
    taking_part,
)
from gsae_ray.results.points import Measured, Points, measured_of, points_of
from gsae_ray.results.sums import have_runs, sums_of_rows
from gsae_ray.results.typed import with_numbers

QUALITIES = {"loss_recovered": "loss recovered", "explained_variance": "explained variance"}
"""Values of SAEs that a frontier may have beside L0, the preferred one first."""


class _Curve(NamedTuple):
    """A group's points: L0 and quality of each [draws, settings]."""

    l0: Array
    quality: Array


Statistic = Callable[[tuple[Array, Array], tuple[Array, Array]], float]
"""The (L0, quality) of two groups' points -> how they compare."""


def compare(
    rows: pd.DataFrame,
    by: str = "architecture",
    base: str | float | None = None,
    *,
    tracking_uri: str | None = None,
    mixed_recipes: bool = False,
    mixed_tokens: bool = False,
) -> Comparison:
    """Compares the kinds of SAEs of a table with one of them, at each site.

    Of each kind and the base there are, as far as the table has the columns:

    - `l0_ratio_at_loss_recovered`, `l0_ratio_at_fvu`: geometric mean of L0 ÷ L0 of the base at equal quality, over the
      range that both curves cover; a curve is linear in log L0 between the Pareto points of its SAEs.
    - `loss_recovered_gap_at_l0`: mean difference of loss recovered at equal L0, over the common range of log L0
      (`explained_variance_gap_at_l0` without a language model).
    - `median_gamma`: the median of the SAEs' γ, and its difference from the base's.
    - `hypervolume`: area of (ln L0 × quality) that the SAEs dominate, up to the worst corner of all SAEs of the site
      (highest L0, lowest quality), which a note states; and its difference from the base's.

    Seeds of one setting are one point, their mean. Intervals are 95 % percentile bootstrap intervals over held-out
    contexts, the same ones for all SAEs of a site, and over seeds where every setting of the two kinds has two or more;
    each says which.

    Args:
        rows: as `frontier` returns them, or any table with `by`, `l0`, and `loss_recovered` or `fvu`; of a paper, say.
            `site`, `gamma`, `recipe`, `tokens`, `seed` with `sparsity`, and `origin` are heeded where they are there.
            Kinds of which some row has no `run_id`, by which sums of each context are found, have no intervals.
        by: the column whose values are compared; of `architecture`, variants are kinds of their own; of any other but
            `origin`, SAEs are compared with those of the same architecture and variant.
        base: the value that the others are compared with; default: `standard`, of origins `own`; of any other column it
            has to be said.
        tracking_uri: of MLflow, where the sums are; default: as for `frontier`.
        mixed_recipes: SAEs may be of recipes that are no comparison of architectures (see `check_recipes`).
        mixed_tokens: SAEs may be trained on different numbers of tokens.

    Raises:
        UserError: columns are missing or hold no numbers, there is only one kind, recipes or tokens are mixed, the
            curves share no range at any site, or sums cannot be had.
    """
    rows = with_numbers(rows)
    check_columns(rows, by)
    notes = list(rows.attrs.get("notes", []))
    rows, left_out = taking_part(rows, by)
    notes += left_out
    named = groups_of(rows, by)
    base = base_of(by, base, named)
    kinds = kinds_of_groups(rows, by, named)
    if by == "origin" and len({*map(tuple, kinds.values())}) > 1:
        notes.append(differ_in_kind(kinds))
    found: list[dict[str, Any]] = []
    apart: list[str] = []
    pairs = 0
    for site, kind, here in parts(rows, by):
        at_site, groups = rows[here], named[here]
        where = (f" at {site}" if site else "") + (f" of {kind}" if kind else "")
        if base not in groups or len(set(groups)) < 2:
            notes.append(f"nothing to compare{where}: all SAEs there are {' and '.join(in_order(groups))}")
            continue
        if not _has_quality(at_site):
            notes.append(f"nothing to compare{where}: no row there has a finite loss_recovered or fvu")
            continue
        check_alike(at_site, by, mixed_recipes, mixed_tokens)
        saes = measured_of(at_site, groups, None)
        runs = [group for group in in_order(groups) if have_runs(at_site[groups == group])]
        compared, worst, lines = _compared(saes, _drawn(saes, runs, tracking_uri), base, where)
        found += [{"site": site, "kind": kind, **row} for row in compared]
        notes.append(f"hypervolume{where}: up to L0 {worst[0]:.4g} and {_quality(saes.values)[1]} {worst[1]:.4g}")
        notes += _on_no_curve(saes, where)
        if without := in_order({*groups} - {*runs}):
            told = f"some rows of {' and '.join(without)} name no run, which would keep sums of each context"
            notes.append(f"no intervals{where} of what they take part in: {told}")
        apart += lines
        pairs += len(set(groups)) - 1
    if len(apart) == pairs:
        told = (
            "; ".join(apart)
            or of_other_kinds(rows, by, named, base)
            or f"no site has SAEs of {base} and of another {by}, with a finite loss_recovered or fvu"
        )
        raise UserError(f"compare: {told}")
    return Comparison(by, base, pd.DataFrame(found), [*apart, *notes])


def _drawn(saes: Measured, groups: list[str], tracking_uri: str | None) -> Measured | None:
    """The SAEs of groups all of which name runs, with draws of contexts; None where there is no such group."""
    if not groups:
        return None
    member = np.isin(saes.groups, groups)
    rows = saes.rows[member]
    return measured_of(rows, saes.groups[member], sums_of_rows(rows, tracking_uri))


def _has_quality(rows: pd.DataFrame) -> bool:
    """Whether some table row has one of `QUALITIES`."""
    return any(np.isfinite(rows[name].astype(float)).any() for name in ("loss_recovered", "fvu") if name in rows)


def _quality(values: Mapping[str, Array]) -> tuple[str, str]:
    """Which of the values is the quality of a frontier, and what it is called."""
    return next((name, QUALITIES[name]) for name in QUALITIES if name in values and np.isfinite(values[name][0]).any())


def _on_no_curve(saes: Measured, where: str) -> list[str]:
    """A line about SAEs without a finite quality, of groups that have others with one."""
    name, text = _quality(saes.values)
    finite = np.isfinite(saes.values[name][0])
    lacking = saes.groups[~finite & np.isin(saes.groups, saes.groups[finite])]
    if not len(lacking):
        return []
    whose = f"{count(len(lacking), 'SAE')} of {' and '.join(in_order(lacking))}{where}"
    return [f"{whose}: no finite {text}; no curve has their settings, `saes` counts them"]


def _compared(
    saes: Measured, drawn: Measured | None, base: str, where: str
) -> tuple[list[dict[str, Any]], tuple[float, float], list[str]]:
    """Table rows of one site, the worst corner, and a line for each group that shares no range with the base.

    What takes only groups of `drawn`, those that have sums of each context, has intervals.
    """
    name, text = _quality(saes.values)
    everything = sorted(set(saes.groups))
    worst = _worst(points_of(_best_known(saes, drawn, everything), everything), name)
    own: dict[str, Callable[[Points, str], Array]] = {"median_gamma": _medians} if "gamma" in saes.values else {}
    own["hypervolume"] = lambda points, group: _areas(_curve(points, name, group), worst)
    rows: list[dict[str, Any]] = []
    apart = []
    for group in [*in_order(set(saes.groups) - {base}), base]:
        # Seeds are drawn where both kinds of a pair have several, whatever the other kinds have.
        alone, pair = (points_of(_best_known(saes, drawn, them), them) for them in ([group], [group, base]))
        pairs = list(_pairs(pair, group, base, name)) if group != base else []
        if pairs and not any(np.isfinite(values[0]) for _, values in pairs):
            apart.append(_apart(pair, group, base, name, text, where))
        for measure, of in own.items():
            rows.append(_row(alone, measure, group, "", of(alone, group)))
            if group != base:
                pairs.append((f"{measure}_difference", _difference(of(pair, group), of(pair, base))))
        rows += [_row(pair, measure, group, base, values) for measure, values in pairs]
    return rows, worst, apart


def _best_known(saes: Measured, drawn: Measured | None, groups: list[str]) -> Measured:
    """With draws, if all of the groups have them."""
    return saes if drawn is None or not set(groups) <= set(drawn.groups) else drawn


def _worst(points: Points, quality: str) -> tuple[float, float]:
    """The highest L0 and the lowest quality of all points."""
    l0, values = points.values["l0"][0], points.values[quality][0]
    finite = np.isfinite(values)
    return float(l0[finite].max()), float(values[finite].min())


def _pairs(points: Points, group: str, base: str, quality: str) -> Iterator[tuple[str, Array]]:
    """(measure, its value over all and in each draw) of each comparison of two groups' curves."""
    for name, at in (("loss_recovered", "l0_ratio_at_loss_recovered"), ("explained_variance", "l0_ratio_at_fvu")):
        if name in points.values and np.isfinite(points.values[name][0]).any():
            yield at, _over_draws(curves.l0_ratio, *(_curve(points, name, g) for g in (group, base)))
    both = (_curve(points, quality, g) for g in (group, base))
    yield f"{quality}_gap_at_l0", _over_draws(curves.quality_gap, *both)


def _curve(points: Points, quality: str, group: str) -> _Curve:
    chosen = points.groups == group
    return _Curve(points.values["l0"][:, chosen], points.values[quality][:, chosen])


def _over_draws(statistic: Statistic, one: _Curve, other: _Curve) -> Array:
    """A statistic of two curves, over all and in each draw."""
    draws = min(map(len, (*one, *other)))
    return np.array([statistic(_finite(one, draw), _finite(other, draw)) for draw in range(draws)])


def _finite(curve: _Curve, draw: int) -> tuple[Array, Array]:
    """(L0, quality) of a curve in one draw: a setting none of whose seeds is drawn is left out; there may be none."""
    l0, quality = curve.l0[draw], curve.quality[draw]
    kept = np.isfinite(l0) & np.isfinite(quality) & (l0 > 0)
    return l0[kept], quality[kept]


def _areas(curve: _Curve, worst: tuple[float, float]) -> Array:
    draws = min(map(len, curve))
    return np.array([curves.hypervolume(*_finite(curve, draw), worst) for draw in range(draws)])


def _medians(points: Points, group: str) -> Array:
    values = points.values["gamma"][:, points.groups == group]
    return np.array([np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in values])


def _difference(one: Array, other: Array) -> Array:
    draws = min(len(one), len(other))
    return one[:draws] - other[:draws]


def _row(points: Points, measure: str, group: str, base: str, values: Array) -> dict[str, Any]:
    """A table row: a number, its interval, and what both rest on."""
    seeds = int(points.seeds.min())
    drawn = len(values) > 1
    low, high = ends_of(values[1:]) if drawn else (np.nan, np.nan)
    told = count(seeds, "seed")
    text = "held-out text" + (f" and {told}" if points.draws_seeds else f", {told}" if seeds else "")
    return {
        "measure": measure,
        "group": group,
        "base": base,
        "value": float(values[0]),
        "low": low,
        "high": high,
        "covers": text if drawn else "",
        "saes": int((points.row_groups == group).sum()),
        "base_saes": int((points.row_groups == base).sum()),
        "contexts": points.contexts if drawn else 0,
        "seeds": seeds,
    }


def _apart(points: Points, group: str, base: str, quality: str, text: str, where: str) -> str:
    """A line about two groups whose curves share no range."""
    told = []
    for name in (group, base):
        l0, values = _finite(_curve(points, quality, name), 0)
        if not len(l0):
            return f"{name} has no finite {text}{where}, so it is compared with nothing"
        told.append(f"{name} has L0 {l0.min():.4g} to {l0.max():.4g}, {text} {values.min():.4g} to {values.max():.4g}")
    return (
        f"{group} and {base} share no range of L0 or {text}{where}: {'; '.join(told)}; a curve takes two SAEs or more "
        "that no other beats, so train some of each between those of the other (further values of λ or k)"
    )
