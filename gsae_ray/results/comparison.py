"""Comparing SAEs of a frontier: by what, what may be compared, L0 at equal quality, sums over each context."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from gsae_ray.config.sections import OWN
from gsae_ray.errors import UserError
from gsae_ray.evaluation.metrics import METRICS, Better
from gsae_ray.results import curves
from gsae_ray.storage.evaluations import Snapshot, Subject
from gsae_ray.tracking.artifacts import fetch_sequences

STOPPED_AT = "stopped_at"
"""The column that says after how many tokens a scheduler has stopped a trial."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """What a frontier has beside L0, the higher the better."""

    name: str
    of: Callable[[pd.DataFrame], pd.Series[Any]]
    """Table rows -> its values, turned so that higher is better."""
    better: Better = "high"
    """What is better of what the name says."""

    @property
    def superlative(self) -> str:
        """`highest loss recovered`, `lowest kl`, `gamma nearest to 1`."""
        ends = {"high": f"highest {self.name}", "low": f"lowest {self.name}", "one": f"{self.name} nearest to 1"}
        return ends[self.better]


LOSS_RECOVERED = Quality("loss recovered", lambda rows: rows["loss_recovered"])
EXPLAINED_VARIANCE = Quality("explained variance", lambda rows: 1 - rows["fvu"])


def is_spliced(rows: pd.DataFrame) -> pd.Series[Any]:
    """Of which table rows the SAE was spliced into a language model; its own loss is then always a number."""
    recovered = rows["loss_recovered"].notna()
    return recovered | rows["ce_clean"].notna() if "ce_clean" in rows else recovered


def quality_of(rows: pd.DataFrame) -> Quality:
    """Loss recovered; of SAEs that were evaluated without a language model the explained variance, 1 − FVU."""
    return LOSS_RECOVERED if rows.empty or is_spliced(rows).any() else EXPLAINED_VARIANCE


def table_metrics(rows: pd.DataFrame) -> list[str]:
    """The metrics of the table for readers, as far as these SAEs can have them."""
    absent = () if quality_of(rows) == LOSS_RECOVERED else ("model",)
    return [name for name, metric in METRICS.items() if metric.table and name in rows and metric.takes not in absent]


def log_l0_at(rows: pd.DataFrame, quality: float) -> float:
    """The logarithm of L0 on a frontier at a loss recovered, or another `Quality` (see `curves.log_l0_at`)."""
    return float(curves.log_l0_at(*curve(rows), np.array(quality)))


def own_saes(rows: pd.DataFrame) -> pd.DataFrame:
    """The table rows of a sweep's own SAEs: without references, SAEs from elsewhere that are shown beside them."""
    return rows[rows["origin"] == OWN] if "origin" in rows else rows  # tables of before have no references


def without_stopped(rows: pd.DataFrame) -> pd.DataFrame:
    """The table rows without trials that a scheduler has stopped, which were measured on fewer contexts."""
    return rows[rows[STOPPED_AT].isna()] if STOPPED_AT in rows else rows


def check_tokens(*groups: pd.DataFrame) -> None:
    """Refuses table rows that may not share a frontier: more tokens make a better SAE of any kind.

    References take no part: what they were trained on is not known.

    Raises:
        UserError: they were trained on different numbers of tokens.
    """
    budgets = sorted({tokens for rows in groups for tokens in own_saes(rows)["tokens"]})
    if len(budgets) > 1:
        raise UserError(
            f"tokens: these SAEs were trained on {listed(budgets)} tokens; name one number of them "
            f"(--tokens {budgets[-1]}), or say that they may be mixed (--tokens all)"
        )


def listed(budgets: Iterable[int]) -> str:
    """Several numbers of tokens as text: `60,000 and 200,000`."""
    *most, last = (f"{tokens:,}" for tokens in budgets)
    return f"{', '.join(most)} and {last}"


def recipes_differ(recipes: Iterable[str]) -> bool:
    """Whether SAEs of these recipes may not be compared: recipes differ as much as architectures do.

    The schedule has to be the same for all, and so has the objective where there is a choice: an architecture with one
    objective of its own (`unit_norm`) may be compared with those trained on either of the others.
    """
    parts = {tuple(recipe.split("/", 1)) for recipe in recipes}
    return len({part[1:] for part in parts}) > 1 or len({part[0] for part in parts} - {"unit_norm"}) > 1


def check_recipes(*groups: pd.DataFrame) -> None:
    """Refuses table rows that may not be compared (see `recipes_differ`).

    References take no part: theirs are not known.

    Raises:
        UserError: they were trained by several recipes.
    """
    recipes = sorted({recipe for rows in groups for recipe in own_saes(rows)["recipe"]})
    if recipes_differ(recipes):
        raise UserError(
            f"recipe: these SAEs were trained by {len(recipes)} recipes ({', '.join(recipes)}), which no comparison "
            "of architectures may mix; choose rows of one, or say mixed_recipes=True"
        )


def l0_ratio(
    better: pd.DataFrame, base: pd.DataFrame, points: int = 21, mixed_recipes: bool = False, mixed_tokens: bool = False
) -> float:
    """Mean ratio of L0 at equal loss recovered, over the range that both frontiers cover; NaN where there is none.

    Without a language model it is that at equal explained variance (see `quality_of`). This is the number alone, of two
    tables of one site; `gsae_ray.compare` has it for each kind and site, of means over seeds, with its interval.

    Raises:
        UserError: the rows were trained by several recipes, a group has references beside own SAEs, or they were
            trained on different numbers of tokens, and `mixed_recipes`, or `mixed_tokens`, does not say that this is
            meant.
    """
    better, base = without_stopped(better), without_stopped(base)
    if not mixed_recipes:
        check_recipes(better, base)
        if any(0 < len(own_saes(rows)) < len(rows) for rows in (better, base)):
            raise UserError(
                "origin: there are references among these SAEs, of which the training is not known; take the sweep's "
                "own (rows[rows.origin == 'own']) or references alone, or say mixed_recipes=True"
            )
    if not mixed_tokens:
        check_tokens(better, base)
    return curves.l0_ratio(curve(better), curve(base), points)


def curve(rows: pd.DataFrame) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(L0, quality) of each row, as `curves` takes them; see `quality_of`."""
    return rows["l0"].to_numpy(), quality_of(rows).of(rows).to_numpy()


def labels(rows: pd.DataFrame) -> pd.Series[Any]:
    """The kind of SAE of each table row: architecture and variant."""
    return rows["architecture"] + rows["variant"].map(lambda variant: f" {variant}" if variant else "")


def subject_of(row: pd.Series[Any]) -> Subject:
    """What of its trial a frontier's row is of: of the finished SAE, by pursuit of it, or of a snapshot."""
    if "pursuit_l0" in row:
        return int(row["pursuit_l0"])
    return None if (tokens := snapshot_of(row)) is None else Snapshot(tokens)


def snapshot_of(row: pd.Series[Any]) -> int | None:
    """The tokens of a row's SAE, if it is a snapshot."""
    return int(row["tokens"]) if row.get("snapshot", False) else None


def sequences(
    run_id: str, tracking_uri: str | None = None, pursuit_l0: int | None = None, snapshot: int | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """What an SAE's evaluation summed over each held-out context, for `intervals`.

    Args:
        run_id: of a row of `frontier`.
        tracking_uri: as for `frontier`.
        pursuit_l0: of that row, if the frontier is one of pursuit.
        snapshot: the tokens of that row, if it is of a snapshot.

    Returns:
        Each of `evaluation.metrics.SUMS`, float64 [contexts], in the order that all SAEs of the frontier share.

    Raises:
        UserError: that run has none.
    """
    found = fetch_sequences(run_id, tracking_uri, pursuit_l0 if snapshot is None else Snapshot(snapshot))
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}
