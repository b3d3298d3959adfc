"""Seeds of one setting as one point with a spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gsae_ray.evaluation.bootstrap import low_and_high
from gsae_ray.evaluation.metrics import METRICS
from gsae_ray.results.columns import REST, SETTINGS, SPREAD, added_columns

OF_ONE_SAE = ("run_id", "trial", "seed", "launch", "parent", "on_frontier", "sink_share", "found_coefficient")
"""Columns of a frontier, beside what was measured, in which SAEs of one setting may differ."""
KNOWN = (*(name for name in (*SETTINGS, *REST) if name not in OF_ONE_SAE), "pursuit_l0", "group")
"""Columns in which SAEs of one setting are alike; those that somebody has added may hold anything."""


def setting_of(rows: pd.DataFrame) -> NDArray[np.intp]:
    """A number for each table row, the same for those that differ in their seed, and in what is no setting, only.

    What has no seed, or nothing that set how sparse it is, is a setting of its own, and so are SAEs that nothing tells
    apart.
    """
    if not {"seed", "sparsity"} <= set(rows):
        return np.arange(len(rows))
    names = [name for name in KNOWN if name in rows]
    alone = rows["seed"].isna() | rows["sparsity"].isna()
    own = pd.Series(np.where(alone, np.arange(len(rows)), -1), index=rows.index)
    again = rows.groupby([*names, "seed"], dropna=False).cumcount()
    keys: list[Any] = [*(rows[name] for name in names), own, again]
    return rows.groupby(keys, dropna=False, sort=False).ngroup().to_numpy()


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting: the mean of each metric over its seeds, and how far they differ.

    Args:
        rows: of a frontier, or typed in: with `seed` and `sparsity`, without which each row is a setting of its own.

    Returns:
        the settings in the order of `rows`, with `seeds`, how many there are, and for each metric, and column of
        numbers that was added, `{metric}_spread`: its standard deviation over them (n − 1), NaN for one. What belongs
        to one SAE (`run_id`, intervals, …) is left out.
    """
    measured = [*(name for name in METRICS if name in rows), *added_columns(rows)]
    ends = {end for name in METRICS for end in low_and_high(name)}
    grouped = rows.groupby(setting_of(rows), sort=False)
    kept = [name for name in rows if name not in {*OF_ONE_SAE, *measured, *ends}]
    kept = [name for name in kept if name in KNOWN or grouped[name].nunique(dropna=False).max() <= 1]
    spreads = grouped[measured].std().add_suffix(SPREAD)
    table = pd.concat(
        [grouped[kept].first(), grouped.size().rename("seeds"), grouped[measured].mean(), spreads], axis=1
    )
    return table.reset_index(drop=True)
