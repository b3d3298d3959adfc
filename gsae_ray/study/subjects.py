"""Which SAEs a study is about: at each site of each model two, one of either architecture, as like as can be."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from gsae_ray.errors import UserError
from gsae_ray.results.comparison import recipes_differ

Match = Literal["l0", "loss_recovered"]
FAR_L0, FAR_RECOVERED = 1.5, 0.02
"""Ratio of L0, and difference of loss recovered, beyond which two SAEs are not alike in it."""
REMEDY = "evaluation.features: {saes: all} in the sweep file, then gsae-ray run SWEEP"
"""Has tables made of all SAEs; by default, and by `gsae-ray features`, they are made of those on the frontier."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """An SAE that a study may be about."""

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
    has_tables: bool = True
    """Of its features; only such an SAE can be compared."""


class Couple(NamedTuple):
    """The two SAEs of a site."""

    better: Subject
    """Of the architecture that is asked whether its features are the clearer ones."""
    base: Subject


def couples(subjects: Sequence[Subject], architectures: tuple[str, str], match: Match) -> list[Couple]:
    """At each site where both architectures have SAEs with tables the two that are nearest in L0 or loss recovered.

    They were trained on equally many tokens, by recipes that may be compared. L0 is compared by its ratio. Of equally
    near ones it is those with the smaller L0, then the first by name. Sorted by model and site.

    Raises:
        UserError: the architectures are one, or no site has SAEs of both.
    """
    if architectures[0] == architectures[1]:
        raise UserError(
            f"--architectures: both are {architectures[0]!r}; a study compares two, e.g. --architectures gated standard"
        )
    tabled = [subject for subject in subjects if subject.has_tables]
    nearest = (_nearest(of_site, architectures, match) for _, of_site in _by_site(tabled))
    found = [couple for couple in nearest if couple is not None]
    if not found:
        there = sorted({subject.architecture for subject in tabled})
        raise UserError(
            f"--architectures: no site has SAEs of both {architectures[0]} and {architectures[1]}, trained alike, "
            f"with tables of features (they are there for {', '.join(there)}); name two that have them, or "
            f"have more made: {REMEDY}"
        )
    return found


def remarks(
    chosen: Sequence[Couple], subjects: Sequence[Subject], architectures: tuple[str, str], match: Match
) -> Iterator[str]:
    """What to know of the couples: sites without one, SAEs that would be nearer, and those that are far apart."""
    couple_of = {_site(couple.better): couple for couple in chosen}
    for site, of_site in _by_site(subjects):
        where = f"{site[2]} of {site[1]}"
        nearest, couple = _nearest(of_site, architectures, match), couple_of.get(site)
        if nearest is None:
            yield f"{where} is left out: no SAEs of both {' and '.join(architectures)} that were trained alike"
        elif couple is None:
            tabled = sorted({s.architecture for s in of_site if s.has_tables and s.architecture in architectures})
            there = f"only {' and '.join(tabled)} SAEs have tables" if tabled else "no SAEs have tables"
            yield f"{where} is left out: {there} of features that could be compared; have more made: {REMEDY}"
        else:
            yield from (f"{where}: {remark}" for remark in _remarks_on(couple, nearest, match))


def _remarks_on(couple: Couple, nearest: Couple, match: Match) -> Iterator[str]:
    if _distance(nearest, match)[0] < _distance(couple, match)[0]:
        yield (
            f"{nearest.better.trial} and {nearest.base.trial} ({_told(nearest)}) are nearer than the two that are "
            f"compared ({_told(couple)}), and not both have tables of features; have them made: {REMEDY}"
        )
    if _distance(couple, match)[0] > (math.log(FAR_L0) if match == "l0" else FAR_RECOVERED):
        yield f"the two are far apart ({_told(couple)}): ratings may differ because of that"


def _told(couple: Couple) -> str:
    better, base = couple
    recovered = f"loss recovered {better.loss_recovered:.4f} and {base.loss_recovered:.4f}"
    return f"L0 {better.l0:.3g} and {base.l0:.3g}, {recovered}"


def _by_site(subjects: Sequence[Subject]) -> Iterator[tuple[tuple[str, str, str], list[Subject]]]:
    for site, group in itertools.groupby(sorted(subjects, key=_site), key=_site):
        yield site, list(group)


def _nearest(of_site: Sequence[Subject], architectures: tuple[str, str], match: Match) -> Couple | None:
    better, base = ([s for s in of_site if s.architecture == name] for name in architectures)
    pairs = [Couple(a, b) for a in better for b in base if _comparable(a, b)]
    return min(pairs, key=lambda pair: _distance(pair, match), default=None)


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
