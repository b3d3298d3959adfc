"""An analysis as text: what a command prints."""

from __future__ import annotations

from collections.abc import Iterator

from gsae_ray.study.analysis import ALL, Analysis, Group
from gsae_ray.study.database import LABELS
from gsae_ray.study.power import Power
from gsae_ray.study.statistics import LEVEL, Difference, Tested

Table = dict[str, list[str]]
"""Head -> cells."""


def summary(found: Analysis) -> str:
    """How far the study is."""
    took = "" if found.median_seconds is None else f"; half of them took {found.median_seconds:.0f} s or less"
    pairs = f"{found.pairs:,} of {found.all_pairs:,} pairs whole"
    return f"{found.rated:,} of {found.items:,} features are rated, {pairs}{took}"


def counts(found: Analysis) -> Table:
    """How often each label was given to either architecture; No 0, Maybe 1, Yes 2."""
    table: Table = {"architecture": list(found.counts)}
    for label in LABELS:
        table[label.capitalize()] = [f"{labels[label]:,}" for labels in found.counts.values()]
    table["mean"] = [_mean(labels) for labels in found.counts.values()]
    return table


def _mean(labels: dict[str, int]) -> str:
    total = sum(labels.values())
    return f"{sum(number * labels[label] for number, label in enumerate(LABELS)) / total:.2f}" if total else "–"


def differences(found: Analysis) -> Table:
    """Mean differences of the pairs, over all and by model and site."""
    groups = found.groups
    return {
        "pairs of": [named(group) for group in groups],
        "pairs": [f"{group.found.pairs:,}" for group in groups],
        "mean difference": ["–" if group.found.mean is None else f"{group.found.mean:+.2f}" for group in groups],
        f"{LEVEL:.0%} interval".replace("%", " %"): [_interval(group.found) for group in groups],
        "p": [p_of(group.found.tested) for group in groups],
    }


def named(group: Group) -> str:
    return "all" if group.by == ALL else f"{group.by} {group.name}"


def _interval(found: Difference) -> str:
    return "–" if found.low is None else f"[{found.low:.2f}, {found.high:.2f}]"


def p_of(tested: Tested) -> str:
    """A p value as papers print it: `.060`, `< .001`."""
    if tested.p is None:
        return "–"
    return "< .001" if tested.p < 0.001 else f"{tested.p:.3f}".removeprefix("0")


def dependences(found: Analysis) -> Table:
    """The tests of the appendix."""
    rows = found.dependences
    return {
        "do they differ": [row.question for row in rows],
        "test": [row.labels.test for row in rows],
        "p of labels": [p_of(row.labels) for row in rows],
        "p of differences": [p_of(row.differences) for row in rows],
    }


def reasons(found: Analysis) -> Iterator[str]:
    """Why there are numbers missing, a line each."""
    for group in found.groups:
        if why := group.found.why or group.found.tested.why:
            yield f"{named(group)}: {why}"
    for row in found.dependences:
        told = {"labels": row.labels.why, "differences": row.differences.why}
        if len(set(told.values())) == 1:
            told = {"": row.labels.why}
        for of, why in told.items():
            if why:
                yield f"{row.labels.test} {row.question}{f', {of}' if of else ''}: {why}"


def power(found: Power) -> Iterator[str]:
    """How many features it takes."""
    effect = f"a mean difference of {found.effect:+.2f} at p < {found.level:g}"
    if found.pairs is None:
        yield f"power: how many pairs it takes to see {effect} cannot be said: {found.why}"
    else:
        often = f"{found.power:.0%} of studies".replace("%", " %")
        yield f"power: about {found.pairs:,} pairs ({found.features:,} features) see {effect} in {often}"
    if found.of_this is not None:
        yield f"as many pairs as are rated here see it in {found.of_this:.0%} of studies".replace("%", " %")
    if found.pairs is not None or found.of_this is not None:
        yield f"({found.method})"
