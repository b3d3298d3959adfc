"""Which SAEs a study is about: at each site of each model two, one of either architecture, as like as can be."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from gsae_ray.errors import UserError
from gsae_ray.results.comparison import recipes_differ

Match = Literal["l0", "loss_recovered"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """An SAE that has tables of features."""

    experiment: str
    model: str
    site: str
    layer: int | None
    """None where the site is a module that was named by its path."""
    point: str
    """The kind of site: resid_post, mlp_out, …"""
    architecture: str
    trial: str
    run_id: str
    l0: float
    loss_recovered: float
    recipe: str
    tokens: int


class Couple(NamedTuple):
    """The two SAEs of a site."""

    better: Subject
    """Of the architecture that is asked whether its features are the clearer ones."""
    base: Subject


def couples(subjects: Sequence[Subject], architectures: tuple[str, str], match: Match) -> list[Couple]:
    """At each site where both architectures have SAEs the two that are nearest in L0 or loss recovered.

    They were trained on equally many tokens, by recipes that may be compared. L0 is compared by its ratio. Of equally
    near ones it is those with the smaller L0, then the first by name. Sorted by model and site.

    Raises:
        UserError: the architectures are one, or no site has SAEs of both.
    """
    if architectures[0] == architectures[1]:
        raise UserError(
            f"--architectures: both are {architectures[0]!r}; a study compares two, e.g. --architectures gated standard"
        )
    found = []
    for _, group in itertools.groupby(sorted(subjects, key=_site), key=_site):
        of_site = list(group)
        better, base = ([s for s in of_site if s.architecture == name] for name in architectures)
        pairs = [Couple(a, b) for a in better for b in base if _comparable(a, b)]
        if pairs:
            found.append(min(pairs, key=lambda pair: _distance(pair, match)))
    if not found:
        there = sorted({subject.architecture for subject in subjects})
        raise UserError(
            f"--architectures: no site has SAEs of both {architectures[0]} and {architectures[1]}, trained alike, "
            f"with tables of features (they are there for {', '.join(there)}); name two that have them, or "
            "have more made: gsae-ray features EXPERIMENT"
        )
    return found


def _site(subject: Subject) -> tuple[str, str, str]:
    return subject.model, subject.experiment, subject.site


def _comparable(better: Subject, base: Subject) -> bool:
    return better.tokens == base.tokens and not recipes_differ((better.recipe, base.recipe))


def _distance(pair: Couple, match: Match) -> tuple[float, float, str, str]:
    if match == "l0":
        distance = abs(math.log(pair.better.l0 / pair.base.l0))
    else:
        distance = abs(pair.better.loss_recovered - pair.base.loss_recovered)
    return distance, pair.better.l0 + pair.base.l0, pair.better.trial, pair.base.trial
