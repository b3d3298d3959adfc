"""Rows of frontiers as one types them in, on straight lines, for tests of comparisons."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from gsae_ray.results import Comparison

SLOPE, OFFSET = 0.02, 0.85


def line(factor: float, l0s: tuple[float, ...] = (8, 16, 32, 64)) -> list[tuple[float, float, float]]:
    """(L0, loss recovered, FVU) of SAEs on a straight line in log L0 that needs `factor` × the L0 of OFFSET's."""
    return [(factor * l0, OFFSET + SLOPE * math.log(l0), 0.5 - 0.1 * math.log(l0)) for l0 in l0s]


def typed(architecture: str, factor: float, **columns: Any) -> pd.DataFrame:
    """Numbers of a paper."""
    rows = pd.DataFrame(line(factor), columns=["l0", "loss_recovered", "fvu"])
    return rows.assign(architecture=architecture, **columns)


def joined(*tables: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)


def value(found: Comparison, measure: str, group: str = "gated", **where: str) -> pd.Series[Any]:
    rows = found.table[(found.table["measure"] == measure) & (found.table["group"] == group)]
    for name, wanted in where.items():
        rows = rows[rows[name] == wanted]
    (row,) = (row for _, row in rows.iterrows())
    return row
