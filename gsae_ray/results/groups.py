"""Which table rows take part in a comparison, in which groups, and which of these may be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gsae_ray.config.recipe import show
from gsae_ray.config.sections import OWN
from gsae_ray.errors import UserError, one_of, suggest
from gsae_ray.results.compared import count
from gsae_ray.results.comparison import check_recipes, check_tokens, labels, own_saes, without_stopped
from gsae_ray.results.typed import check_fractions

DEFAULT_BASE = {"architecture": "standard", "origin": OWN}
"""Column -> what its other groups are compared with, unless something else is asked for."""
MOST_LISTED = 10
"""Values of a column that an error line lists."""


def parts(rows: pd.DataFrame, by: str) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """(site, kind, which table rows) of each part within which SAEs are compared; a name that tells nothing is empty.

    A width, or another setting, of one architecture is not compared with one of another: the number would be that of
    the architectures.
    """
    sites = rows["site"].astype(str) if "site" in rows else pd.Series("", index=rows.index)
    kinds = _kinds(rows, by)
    if by in ("architecture", "origin") or kinds.nunique() < 2:
        kinds = pd.Series("", index=rows.index)
    for site, kind in sorted({*zip(sites, kinds, strict=True)}):
        yield site, kind, ((sites == site) & (kinds == kind)).to_numpy()


def _kinds(rows: pd.DataFrame, by: str) -> pd.Series[Any]:
    """The architecture and variant of each row, as far as they are not what is compared; empty where not known."""
    if by == "architecture" or "architecture" not in rows:
        return pd.Series("", index=rows.index)
    variant = rows["variant"].fillna("") if "variant" in rows and by != "variant" else ""
    return labels(rows.assign(architecture=rows["architecture"].fillna(""), variant=variant))


def of_other_kinds(rows: pd.DataFrame, by: str, groups: NDArray[np.object_], base: str) -> str:
    """A line about groups none of which has SAEs of an architecture that the base has; empty where one has."""
    kinds = kinds_of_groups(rows, by, groups)
    if any(set(kinds[base]) & set(kinds[group]) for group in kinds if group != base):
        return ""
    return (
        f"{differ_in_kind(kinds)}; a comparison by {by} takes SAEs of one architecture and variant, so add some with "
        f"the {by} of another"
    )


def kinds_of_groups(rows: pd.DataFrame, by: str, groups: NDArray[np.object_]) -> dict[str, list[str]]:
    """The architectures and variants of each group."""
    return {group: sorted(set(_kinds(rows[groups == group], by))) for group in in_order(groups)}


def differ_in_kind(kinds: Mapping[str, list[str]]) -> str:
    """The architectures and variants of groups, as a line."""
    return "these differ in architecture, too: " + "; ".join(f"{group}: {', '.join(of)}" for group, of in kinds.items())


def check_columns(rows: pd.DataFrame, by: str) -> None:
    """Refuses a table that lacks what every comparison takes, or has it in percent.

    Raises:
        UserError: it does.
    """
    if by not in rows:
        raise UserError(f"by: these rows have no column {by!r}; {suggest(by, rows.columns)}")
    missing = [name for name in ("l0", "loss_recovered") if name not in rows]
    if "l0" in missing or (missing and "fvu" not in rows):
        raise UserError(
            f"compare: these rows have no column {missing[0]!r}; a comparison takes l0, and loss_recovered or fvu, of "
            "each SAE"
        )
    check_fractions(rows)


def taking_part(rows: pd.DataFrame, by: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows with a site, a group and a positive L0, references only where compared; and what is left out."""
    own, notes = without_stopped(rows), []
    if len(own) < len(rows):
        notes.append(f"{count(len(rows) - len(own), 'trial')} that the scheduler has stopped: left out")
    rows = own
    if by != "origin" and not own_saes(rows).empty and "origin" in rows:
        own = rows[(rows["origin"] == OWN) | rows["origin"].isna()]  # numbers of a paper have no origin
    if len(own) < len(rows):
        notes.append(f'references are left out: {len(rows) - len(own)} SAEs; by="origin" compares them with the others')
    if "seed" in own and "sparsity" not in own and own["seed"].nunique() > 1:
        notes.append(
            "seed: there is no column sparsity, so each row is a setting of its own, and seeds are not averaged"
        )
    usable = own[by].notna() & (own["l0"] > 0)
    lacking = f"no {by}, or no L0 above 0"
    if "site" in own:
        usable &= own["site"].notna()
        lacking = f"no site, {lacking}"
    if not usable.all():
        notes.append(f"{(~usable).sum()} rows are left out: {lacking}")
    return own[usable], notes


def groups_of(rows: pd.DataFrame, by: str) -> NDArray[np.object_]:
    """The kind of each row, as text."""
    if by == "architecture" and "variant" in rows:
        return labels(rows.assign(variant=rows["variant"].fillna(""))).to_numpy(object)
    values = rows[by].infer_objects()
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return values.map(_as_text).to_numpy(object)
    return values.astype(str).to_numpy(object)


def in_order(groups: Iterable[str]) -> list[str]:
    """Different groups, each once: numbers as such, before texts."""
    return sorted(set(groups), key=lambda group: (_number(group) is None, _number(group) or 0.0, group))


def _as_text(number: float) -> str:
    """A number as text, the same whether it was an int or a float."""
    return str(int(number)) if math.isfinite(number) and number == int(number) else show(float(number))


def _number(text: object) -> float | None:
    """The number that something is, or says; None: it is none."""
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def base_of(by: str, base: str | float | None, groups: NDArray[np.object_]) -> str:
    """The group that others are compared with.

    Raises:
        UserError: there is only one group, or no such one, or it has to be said.
    """
    known = in_order(groups)
    if len(known) < 2:
        told = f"all rows are {known[0]}" if known else "there is no SAE"
        raise UserError(
            f"compare: {told}; a comparison by {by} takes two kinds, so add SAEs of another, or name a column"
        )
    asked = DEFAULT_BASE.get(by) if base is None else base
    number = _number(asked)
    wanted = [] if asked is None else [str(asked)] if number is None else [str(asked), _as_text(number)]
    if found := [text for text in wanted if text in known]:
        return found[0]
    if base is None:
        raise UserError(f"base: say with which {by} the others are compared; {one_of(known, MOST_LISTED)}")
    told = suggest(base, known, MOST_LISTED) if number is None else one_of(known, MOST_LISTED)
    raise UserError(f"base: no {by} {base!r} among these rows; {told}")


def check_alike(rows: pd.DataFrame, by: str, mixed_recipes: bool, mixed_tokens: bool) -> None:
    """Refuses rows of one site that may not be compared; those of a paper say nothing of their training.

    Raises:
        UserError: they may not.
    """
    if "recipe" in rows and by != "recipe" and not mixed_recipes:
        check_recipes(rows[rows["recipe"].notna()])
    if "tokens" in rows and by != "tokens" and not mixed_tokens:
        check_tokens(rows[rows["tokens"].notna()])
