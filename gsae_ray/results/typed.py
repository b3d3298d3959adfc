"""Tables and numbers that users type in: what they cannot be is refused in one line."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real

import pandas as pd

from gsae_ray.config.sections import OWN
from gsae_ray.errors import UserError, shown

MOST_RECOVERED = 1.5
"""More than any SAE recovers of the loss; a little above 1 is possible, where its reconstruction is better than x."""


NUMBERS = ("l0", "loss_recovered", "fvu", "gamma", "tokens", "seed")
"""Columns that hold numbers, as far as a table has them."""
TEXTS = {"site": "", "variant": "", "recipe": "", "origin": OWN}
"""Columns that hold text, and what a row has that does not say it."""
OPTIONAL = ("loss_recovered", "fvu", "d_sae", "tokens")
"""Columns of numbers without which a table can be drawn."""


def with_numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """A table whose columns of numbers hold numbers, NaN where nothing is said.

    Raises:
        UserError: it is no table, or has text there.
    """
    if not isinstance(rows, pd.DataFrame):
        raise UserError(
            f"rows: a pandas.DataFrame is meant, not {shown(rows)}; give pandas.DataFrame(…), or "
            'gsae_ray.frontier("NAME")'
        )
    for name in NUMBERS:
        if name in rows and not pd.api.types.is_numeric_dtype(rows[name]):
            wrong = [value for value in rows[name] if not (isinstance(value, Real) or value is None or value is pd.NA)]
            if wrong:
                raise UserError(
                    f"{name}: {shown(wrong[0])} is no number; give numbers (rows.astype({{{name!r}: float}}) makes "
                    "them of text)"
                )
            rows = rows.assign(**{name: pd.to_numeric(rows[name])})
    return rows


def with_columns(rows: pd.DataFrame, needed: Iterable[str]) -> pd.DataFrame:
    """A table as `with_numbers`, with the columns that a picture takes; what its rows do not say is empty.

    Raises:
        UserError: as `with_numbers`; or a column that is needed is missing.
    """
    rows = with_numbers(rows)
    if missing := [name for name in needed if name not in rows]:
        raise UserError(f"rows: there is no column {missing[0]!r}, which they have to have")
    for name, default in TEXTS.items():
        given = rows[name] if name in rows else pd.Series(default, index=rows.index)
        rows = rows.assign(**{name: given.fillna(default)})
    return rows.assign(**{name: float("nan") for name in OPTIONAL if name not in rows})


def check_number(name: str, value: float | None) -> None:
    """Refuses an argument that is no number.

    Raises:
        UserError: so it is.
    """
    if value is not None and not isinstance(value, Real):
        raise UserError(f"{name}: {shown(value)} is no number; give it without quotes")


def check_fractions(rows: pd.DataFrame) -> None:
    """Refuses a table with loss recovered in percent.

    Raises:
        UserError: so it is.
    """
    if "loss_recovered" in rows and (highest := rows["loss_recovered"].max()) > MOST_RECOVERED:
        raise UserError(f"loss_recovered: {highest:g} is above 1: a fraction is meant, {highest / 100:g}")


def check_fraction(name: str, value: float | None) -> None:
    """Refuses an argument above 1.

    Raises:
        UserError: so it is.
    """
    if value is not None and value > 1:
        raise UserError(f"{name}: {value:g} is above 1: a fraction is meant, {value / 100:g}")
