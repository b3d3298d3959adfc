"""Which SAE of a frontier is the best under a constraint, from how many it was chosen, and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from gsae_ray.errors import UserError, suggest
from gsae_ray.evaluation.metrics import METRICS, RATED, Better
from gsae_ray.results.columns import added_columns
from gsae_ray.results.comparison import (
    LOSS_RECOVERED,
    Quality,
    check_tokens,
    own_saes,
    quality_of,
    snapshot_of,
    without_stopped,
)
from gsae_ray.results.constraint import Constraint
from gsae_ray.results.curves import above_chord


@dataclasses.dataclass(frozen=True)
class Choice:
    """The SAEs that meet a constraint, and why the first of them is the best."""

    ranked: pd.DataFrame
    """Rows of the frontier, the best first."""
    why: str
    """In words: by which rule, from how many, and what lies nearest beyond the constraint."""

    @property
    def row(self) -> pd.Series[Any]:
        """The best one's."""
        return self.ranked.iloc[0]


def choice_of(
    rows: pd.DataFrame, constraint: Constraint, mixed_tokens: bool = False, with_references: bool = False
) -> Choice:
    """Ranks the SAEs of one site that meet a constraint.

    Of equal ones the one with the lower L0 comes first (where that is what was asked for, the one with the higher
    quality), then the one whose trial's name comes first.

    Args:
        rows: of a frontier; trials that a scheduler has stopped are not considered.
        constraint: what is asked for.
        mixed_tokens: they may be trained on different numbers of tokens.
        with_references: references may be chosen, too.

    Raises:
        UserError: rows of several sites, or numbers of tokens that may not be mixed; not exactly one constraint, or
            nothing meets it; or no such column.
    """
    rows = without_stopped(rows if with_references else own_saes(rows))
    if rows.empty:
        raise UserError("best: no SAE to choose from; those of this sweep have L0 = 0 or a result that is not finite")
    sites = sorted(set(rows["site"]))
    if len(sites) > 1:
        raise UserError(f"site: this sweep has {len(sites)}, name one (one of: {', '.join(sites)})")
    if not mixed_tokens:
        check_tokens(rows)
    constraint.check()
    quality = quality_of(rows) if constraint.by is None else quality_by(rows, constraint.by)
    rows = rows[np.isfinite(quality.of(rows).astype(float))]
    if constraint.knee:
        choice = _at_knee(rows, quality, sites[0])
    elif constraint.max_l0 is not None:
        choice = _within_l0(rows, constraint.max_l0, quality, constraint.by, sites[0])
    else:
        assert constraint.min_loss_recovered is not None
        choice = _that_recovers(rows, constraint.min_loss_recovered, quality, constraint.by, sites[0])
    if snapshot_of(choice.row) is None:
        return choice
    return Choice(choice.ranked, f"{choice.why}; it is a snapshot, from before the end of its learning-rate schedule")


def quality_by(rows: pd.DataFrame, by: str) -> Quality:
    """A column as quality; the higher the better, γ the nearer to 1, and of errors the lower.

    Raises:
        UserError: there is no such column, it is no quality, or no SAE has a number there.
    """
    known = [name for name, metric in METRICS.items() if metric.better is not None and name in rows]
    known += added_columns(rows)
    measured = [name for name in known if np.isfinite(rows[name].astype(float)).any()]
    if by not in measured:
        wrong = f"no SAE has a finite {by}" if by in known else f"{by!r} is no quality that these SAEs have"
        remedy = "gsae-ray rate EXPERIMENT measures it" if by in RATED else suggest(by, measured)
        raise UserError(f"by: {wrong}; {remedy}")
    better = (METRICS[by].better if by in METRICS else None) or "high"
    of: dict[Better, Callable[[pd.DataFrame], pd.Series[Any]]] = {
        "high": lambda rows: rows[by],
        "low": lambda rows: -rows[by],
        "one": lambda rows: -(rows[by] - 1).abs(),
    }
    return Quality(by.replace("_", " "), of[better], better)


def _sorted(rows: pd.DataFrame, *keys: pd.Series[Any]) -> pd.DataFrame:
    """Rows by keys, the lowest first, then by the names of trials."""
    names = (rows["trial"] if "trial" in rows else rows["l0"]).astype(str).to_numpy(str)
    return rows.iloc[np.lexsort((names, *(key.to_numpy(float) for key in reversed(keys))))]


def _within_l0(rows: pd.DataFrame, max_l0: float, quality: Quality, by: str | None, site: str) -> Choice:
    fits = rows["l0"] <= max_l0
    beyond = _sorted(rows[~fits], rows[~fits]["l0"], -quality.of(rows[~fits]))
    if not fits.any():
        nearest = beyond.iloc[0]
        raise UserError(
            f"max_l0: no SAE has L0 <= {max_l0:g}; the lowest is {nearest['l0']:.3g} ({_described(nearest, by)}); "
            f"give more, or train {_sparser(rows)}"
        )
    further = (
        f"the nearest above: {_described(beyond.iloc[0], by)}"
        if len(beyond)
        else f"none lies above: train {_denser(rows)}"
    )
    rows, all_rows = rows[fits], len(rows)
    why = _why(quality.superlative, len(rows), f"L0 <= {max_l0:g}", all_rows, site)
    return Choice(_sorted(rows, -quality.of(rows), rows["l0"]), f"{why}; {further}")


def _that_recovers(rows: pd.DataFrame, least: float, quality: Quality, by: str | None, site: str) -> Choice:
    if quality_of(rows) != LOSS_RECOVERED:
        raise UserError(
            "min_loss_recovered: these SAEs were evaluated without a language model, so there is no loss recovered; "
            f"give max_l0 (e.g. {math.ceil(rows['l0'].median())}) for the {quality.superlative}"
        )
    fits = rows["loss_recovered"] >= least
    beyond = _sorted(rows[~fits], -rows[~fits]["loss_recovered"], rows[~fits]["l0"])
    if not fits.any():
        nearest = beyond.iloc[0]
        raise UserError(
            f"min_loss_recovered: no SAE recovers {least:g}; the highest is {nearest['loss_recovered']:.4f} "
            f"({_described(nearest, by)}); give less, or train {_denser(rows)}"
        )
    further = (
        f"the nearest below: {_described(beyond.iloc[0], by)}"
        if len(beyond)
        else f"none lies below: train {_sparser(rows)}"
    )
    rows, all_rows = rows[fits], len(rows)
    what = "lowest L0" if by is None else quality.superlative
    why = _why(what, len(rows), f"loss recovered >= {least:g}", all_rows, site)
    keys = (rows["l0"], -quality.of(rows)) if by is None else (-quality.of(rows), rows["l0"])
    return Choice(_sorted(rows, *keys), f"{why}; {further}")


def _at_knee(rows: pd.DataFrame, quality: Quality, site: str) -> Choice:
    height = pd.Series(above_chord(rows["l0"].to_numpy(), quality.of(rows).to_numpy(float)), index=rows.index)
    front = rows[height.notna()]
    height = height[height.notna()]
    if len(front) < 3 or height.max() <= 0:
        raise UserError(
            f"knee: the frontier at {site} has none: {len(front)} points, of which none lies above the straight line "
            "between its ends; give max_l0 or min_loss_recovered"
        )
    why = (
        f"the knee of the frontier at {site}: of its {len(front)} SAEs the farthest above the straight line between "
        f"the ends, in log L0 and {quality.name}"
    )
    return Choice(_sorted(front, -height, front["l0"]), why)


def _sparser(rows: pd.DataFrame) -> str:
    """What to train where an L0 is not low enough."""
    return f"sparser ones ({'a smaller target_l0' if _have_target(rows) else 'a larger λ, a smaller k'})"


def _denser(rows: pd.DataFrame) -> str:
    """What to train where a quality is not high enough."""
    return f"denser ones ({'a larger target_l0' if _have_target(rows) else 'a smaller λ, a larger k'})"


def _have_target(rows: pd.DataFrame) -> bool:
    """Whether a target L0 set how sparse these SAEs are, for some of them at least."""
    return "found_coefficient" in rows and bool(rows["found_coefficient"].notna().any())


def _why(what: str, fitting: int, constraint: str, considered: int, site: str) -> str:
    return f"the {what} of {fitting} with {constraint}, from {considered} at {site}"


def _described(row: pd.Series[Any], by: str | None) -> str:
    """`NAME, L0 22.53, loss recovered 0.9827`, with `by` that column too."""
    return f"{name_of(row)}, {measured(row, by)}"


def name_of(row: pd.Series[Any]) -> str:
    """What a table row's SAE is called: by its trial, a reference by its origin."""
    at = "" if (tokens := snapshot_of(row)) is None else f" (snapshot at {tokens:,} tokens)"
    return f"{row['trial'] or row['origin']}{at}"


def measured(row: pd.Series[Any], by: str | None = None) -> str:
    """`L0 22.53, loss recovered 0.9827`, without a language model `L0 22.53, FVU 0.1904`; with `by` that column too."""
    recovered = row.get("loss_recovered")
    shown = "loss_recovered" if pd.notna(recovered) else "fvu"
    quality = f"loss recovered {recovered:.4f}" if shown == "loss_recovered" else f"FVU {row['fvu']:.4f}"
    return f"L0 {row['l0']:.2f}, {quality}" + (f", {by.replace('_', ' ')} {row[by]:.4g}" if by and by != shown else "")
