"""Tables and numbers that users type in: what they cannot be is refused in one line."""

from __future__ import annotations

import pandas as pd

from gsae_ray.errors import UserError

MOST_RECOVERED = 1.5
"""More than any SAE recovers of the loss; a little above 1 is possible, where its reconstruction is better than x."""


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
