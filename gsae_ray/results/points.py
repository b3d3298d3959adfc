"""The SAEs of a site as points, seeds of one setting being one point, over all held-out contexts and over draws."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gsae_ray.errors import UserError
from gsae_ray.evaluation import metrics
from gsae_ray.evaluation.bootstrap import DRAWS, SEED, Sequences, draw_contexts, sums_of
from gsae_ray.evaluation.metrics import AbsentSumError, Array, Formula
from gsae_ray.results.intervals import check_contexts
from gsae_ray.results.seeds import setting_of

FORMULAS: dict[str, Formula] = {
    "l0": metrics.l0,
    "loss_recovered": metrics.loss_recovered,
    "explained_variance": lambda sums: 1 - metrics.fvu(sums),
    "gamma": metrics.gamma,
}
"""What SAEs, and points, have -> how it follows from sums over contexts."""
COLUMNS: dict[str, Callable[[pd.DataFrame], pd.Series[float]]] = {
    "l0": lambda rows: rows["l0"],
    "loss_recovered": lambda rows: rows["loss_recovered"],
    "explained_variance": lambda rows: 1 - rows["fvu"],
    "gamma": lambda rows: rows["gamma"],
}
"""The same -> how it follows from a table."""
SAME = 1e-6
"""Relative difference up to which a table and the sums of its runs tell the same."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """The SAEs of a site."""

    rows: pd.DataFrame
    """A table row each."""
    groups: NDArray[np.object_]
    """The group of each [SAEs]."""
    values: Mapping[str, Array]
    """Of `FORMULAS`, as far as there are: [1 + draws, SAEs], at first over all; [1, SAEs] without sums."""
    contexts: int
    """How many held-out contexts are drawn; 0: none, since there are no sums."""
    random: np.random.RandomState
    """As it was once contexts were drawn: all draws of seeds begin from here."""


@dataclasses.dataclass(frozen=True)
class Points:
    """Settings of a site, of some groups."""

    values: Mapping[str, Array]
    """As those of `Measured`, but [1 + draws, settings]."""
    row_groups: NDArray[np.object_]
    """The group of each table row [SAEs]."""
    groups: NDArray[np.object_]
    """The group of each setting [settings]."""
    seeds: NDArray[np.intp]
    """How many seeds each setting has [settings]; 0: that is not known."""
    contexts: int
    """As that of `Measured`."""

    @property
    def draws_seeds(self) -> bool:
        """Whether draws are of seeds, too."""
        return _draws_seeds(self.seeds)


def measured_of(rows: pd.DataFrame, groups: NDArray[np.object_], sums: Sequence[Sequences] | None) -> Measured:
    """What was measured of a site's table rows; a draw takes contexts with replacement, the same ones for all SAEs.

    Args:
        rows: of one site.
        groups: of each row: rows of different ones are different settings.
        sums: of each row; None: there are none.

    Raises:
        UserError: SAEs were evaluated on different contexts, or the table does not say what its runs' sums do.
    """
    random, counts, contexts = np.random.RandomState(SEED), np.ones((1, 0)), 0
    if sums is not None:
        contexts = len(check_contexts(sums))
        counts = draw_contexts(contexts, DRAWS, random)
    drawn = None if sums is None else [sums_of(sae, counts) for sae in sums]
    values = {}
    for name, column in COLUMNS.items():
        try:
            told = column(rows).to_numpy(np.float64, na_value=np.nan)[None]
        except KeyError:  # numbers of a paper need not have it
            continue
        if drawn is not None:
            try:
                found = np.stack([FORMULAS[name](sums) for sums in drawn], axis=1)
            except AbsentSumError:
                pass
            else:
                _check_same(name, told, found[:1])
                told = found
        values[name] = told
    return Measured(rows, groups, values, contexts, random)


def points_of(saes: Measured, wanted: Iterable[str]) -> Points:
    """The points of some groups, each the mean over a setting's seeds.

    Where every setting of these groups has two seeds or more a draw takes seeds, too, the same ones for all settings.
    """
    member = np.isin(saes.groups, list(wanted))
    rows, groups = saes.rows[member], saes.groups[member]
    settings = setting_of(rows.assign(group=groups))
    first = [int(np.flatnonzero(settings == setting)[0]) for setting in range(settings.max() + 1)]
    known = rows["seed"] if "seed" in rows else pd.Series(np.nan, index=rows.index)
    seeds = np.array([known[settings == setting].nunique() for setting in range(len(first))])
    draws = max(len(found) for found in saes.values.values())
    weights = _seed_weights(known, seeds, draws, copy.deepcopy(saes.random))
    values = {name: _means(found[:, member], weights[: len(found)], settings) for name, found in saes.values.items()}
    return Points(values, groups, groups[first], seeds, saes.contexts)


def _draws_seeds(seeds: NDArray[np.intp]) -> bool:
    return bool(len(seeds) and seeds.min() > 1)


def _seed_weights(known: pd.Series[float], seeds: NDArray[np.intp], draws: int, random: np.random.RandomState) -> Array:
    """How often each SAE's seed is taken [draws, SAEs]: at first once."""
    if not _draws_seeds(seeds):
        return np.ones((draws, len(known)))
    different, number = np.unique(known.to_numpy(np.float64, na_value=np.nan), return_inverse=True)
    n = len(different)
    drawn = random.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    drawn[0] = 1
    return drawn[:, number]


def _means(values: Array, weights: Array, settings: NDArray[np.intp]) -> Array:
    """Means over the seeds of each setting [draws, settings]; NaN where none of them is drawn."""
    member = settings[:, None] == np.arange(settings.max() + 1)
    taken = weights @ member
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(
            [(values[:, m] * weights[:, m]).sum(1) / taken[:, setting] for setting, m in enumerate(member.T)], axis=1
        )


def _check_same(name: str, told: Array, found: Array) -> None:
    """Refuses a table whose numbers were changed, or are of another evaluation than the sums.

    Raises:
        UserError: it is one.
    """
    if not np.allclose(told, found, rtol=SAME, atol=SAME, equal_nan=True):
        raise UserError(
            f"{name}: these rows do not say what their runs have measured; leave run_id out to compare the numbers as "
            'they stand (rows.drop(columns="run_id")), without intervals'
        )
