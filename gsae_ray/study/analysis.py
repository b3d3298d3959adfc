"""The analysis of a study, as in the paper: counts, paired differences, and tests of what else labels depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from gsae_ray.study.database import LABELS
from gsae_ray.study.power import Power, power_of
from gsae_ray.study.ratings import Ratings
from gsae_ray.study.statistics import Array, Difference, Tested, difference, friedman, kruskal, mann_whitney, page

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Group:
    """The paired differences of some of the pairs."""

    by: str
    """all, model or site."""
    name: str
    found: Difference


@dataclasses.dataclass(frozen=True)
class Dependence:
    """Whether labels, and differences, depend on something."""

    question: str
    labels: Tested
    differences: Tested


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What came out of a study."""

    better: str
    base: str
    items: int
    rated: int
    pairs: int
    """Of which both are rated."""
    all_pairs: int
    median_seconds: float | None
    counts: dict[str, dict[str, int]]
    """Architecture -> label -> how often."""
    groups: list[Group]
    dependences: list[Dependence]
    power: Power
    seed: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def analyse(ratings: Ratings, seed: int = 0) -> Analysis:
    """Analyses what is rated so far.

    Args:
        ratings: as `read_ratings` gives them.
        seed: of the bootstrap and of the simulation of power.
    """
    rated, pairs = ratings.rated, ratings.pairs
    seconds = rated["seconds"]
    return Analysis(
        ratings.better,
        ratings.base,
        len(ratings.items),
        len(rated),
        len(pairs),
        len(ratings.items) // 2,
        float(seconds.median()) if len(seconds) else None,
        _counts(ratings),
        [Group(by, name, difference(_values(part), seed)) for by, name, part in _groups(pairs)],
        list(_dependences(rated, pairs)),
        power_of(_values(pairs), seed),
        seed,
    )


def _counts(ratings: Ratings) -> dict[str, dict[str, int]]:
    rated = ratings.rated
    return {
        name: {
            label: int(((rated["architecture"] == name) & (rated["label"] == number)).sum())
            for number, label in enumerate(LABELS)
        }
        for name in (ratings.better, ratings.base)
    }


def _groups(pairs: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    yield ALL, ALL, pairs
    for by, column in (("model", "model"), ("site", "point")):
        if pairs[column].nunique() > 1:
            for name, part in pairs.groupby(column):
                yield by, str(name), part


def _values(pairs: pd.DataFrame) -> Array:
    return pairs["difference"].to_numpy(np.float64)


def _dependences(rated: pd.DataFrame, pairs: pd.DataFrame) -> Iterator[Dependence]:
    """The tests of the paper's appendix, on labels and on differences.

    Blocks of the tests within blocks are what is left of (model, layer, site, rater), and of labels the architecture;
    of several pairs in one block the mean counts. Blocks that lack a group take no part.
    """

    def apart(column: str, test: Callable[[list[Array]], Tested]) -> tuple[Tested, Tested]:
        labels = [part["label"].to_numpy(np.float64) for _, part in rated.groupby(column)]
        return test(labels), test([_values(part) for _, part in pairs.groupby(column)])

    def within(column: str, model: str | None, test: Callable[[Array], Tested]) -> tuple[Tested, Tested]:
        found = []
        for rows, value, more in ((rated, "label", ["architecture"]), (pairs, "difference", [])):
            of_model = rows if model is None else rows[rows["model"] == model]
            found.append(test(_table(of_model, column, value, more)))
        return found[0], found[1]

    models = sorted(set(rated["model"]))
    yield Dependence("between models", *apart("model", mann_whitney))
    yield Dependence("between raters", *apart("rater", kruskal))
    for model in models:
        yield Dependence(f"between raters, {model}", *within("rater", model, friedman))
    yield Dependence("between sites", *within("point", None, friedman))
    for model in models:
        yield Dependence(f"between layers, {model}", *within("layer", model, friedman))
        yield Dependence(f"rising with the layer, {model}", *within("layer", model, page))


def _table(rows: pd.DataFrame, treatment: str, value: str, more: list[str]) -> Array:
    """[blocks, treatments] of the blocks that have all; treatments in their order."""
    blocks = [name for name in ("model", "layer", "point", "rater", *more) if name != treatment]
    known = rows.dropna(subset=[treatment]).fillna({"layer": -1})
    if known.empty:
        return np.zeros((0, 0))
    table = known.astype({value: float}).pivot_table(value, blocks, treatment, aggfunc="mean")
    return table.dropna().to_numpy(np.float64).reshape(-1, known[treatment].nunique())
