"""Making a study: features are drawn, paired, shuffled for each rater, and written down with their texts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gsae_ray.errors import UserError
from gsae_ray.feature_tables import About, FeatureTables
from gsae_ray.study.database import make
from gsae_ray.study.subjects import Couple, Match, Subject
from gsae_ray.study.texts import Text, Texts, texts_of_each, with_enough_texts
from gsae_ray.version import __version__

_AGAIN = (
    "give evaluation.features of each sweep file saes: all and the same contexts, window and tokens, and launch it "
    "again: gsae-ray run SWEEP"
)


@dataclasses.dataclass(frozen=True)
class Design:
    """How a study is laid out."""

    pairs: int
    """Of features, for each rater and site; of each pair one feature is of either SAE."""
    raters: int
    seed: int
    texts: int = 10
    """Of each feature, that raters see; features with fewer are not drawn."""
    match: Match = "l0"
    """How the SAEs were chosen."""


class Feature(NamedTuple):
    """A feature that is in a study."""

    number: int
    density: float
    texts: list[Text]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The features of an SAE that are in a study."""

    subject: Subject
    about: About
    drawn_from: int
    features: list[list[Feature]]
    """[raters][pairs]: no feature is drawn twice."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A study that was made."""

    tokens: dict[str, str]
    """Rater -> what opens the rater's page."""
    drawn: list[Drawn]
    items: int
    """Features that each rater rates."""


def check_new(path: Path) -> None:
    """Refuses a file that is there: it may hold answers.

    Raises:
        UserError: it is, or its folder is not.
    """
    if path.exists():
        raise UserError(
            f"--out: {path} is there already, and may hold answers; give another file, or move this one away"
        )
    if not path.parent.is_dir():
        raise UserError(f"--out: there is no folder {path.parent}; make it, or give another file")


def create(
    path: Path, couples: Sequence[Couple], tables_of: Callable[[Subject], FeatureTables], design: Design
) -> Made:
    """Draws features and writes the study.

    A feature is drawn uniformly among those of its SAE that fire and have enough texts, without replacement: no feature
    is rated twice. What is drawn of an SAE follows from the seed, its trial's name and its site alone.

    Args:
        path: of the new file.
        couples: the SAEs, two a site.
        tables_of: the tables of an SAE's features.
        design: how many.

    Raises:
        UserError: there is such a file, an SAE has too few features with enough texts, or tables were not made alike:
            what differs could be seen in the texts.
    """
    check_new(path)
    drawn: list[Drawn] = []
    for couple in couples:
        for subject in couple:
            drawn.append(_drawn(subject, tables_of(subject), design))  # tables of one SAE in memory at a time
            _check_alike(drawn[0], drawn[-1])
        _check_same_text(*drawn[-2:])
    tokens = {f"rater {number}": secrets.token_urlsafe(24) for number in range(1, design.raters + 1)}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        database = make(temporary)
        try:
            with database:
                database.execute("BEGIN")
                _write(database, drawn, tokens, couples[0], design)
        finally:
            database.close()
        check_new(path)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Made(tokens, drawn, 2 * len(couples) * design.pairs)


def _generator(design: Design, *what: object) -> np.random.Generator:
    """Random numbers for one purpose, whatever else is drawn."""
    digest = hashlib.sha256(json.dumps([design.seed, *map(str, what)]).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def draw(subject: Subject, eligible: npt.NDArray[np.int64], d_sae: int, design: Design) -> npt.NDArray[np.int64]:
    """Draws the features of an SAE [raters, pairs] among those that may be drawn.

    Raises:
        UserError: they are too few.
    """
    needed = design.raters * design.pairs
    if len(eligible) < needed:
        raise UserError(
            f"--pairs: {design.raters} raters with {design.pairs} pairs each take {needed} features of each SAE, and "
            f"{subject.trial} at {subject.site} has {len(eligible)} that fire and have {design.texts} texts, of "
            f"{d_sae}; ask for fewer (--pairs, --raters), for fewer texts (--texts), or have more texts found: more "
            "contexts under evaluation.features in the sweep file, then gsae-ray run SWEEP"
        )
    random = _generator(design, "features", subject.site, subject.trial)
    return random.choice(eligible, needed, replace=False).reshape(design.raters, design.pairs)


def _drawn(subject: Subject, tables: FeatureTables, design: Design) -> Drawn:
    eligible = with_enough_texts(tables, design.texts)
    if not len(eligible) and (most := int(texts_of_each(tables).max())):
        raise UserError(
            f"--texts: no feature of {subject.trial} at {subject.site} has {design.texts} different texts, the tables "
            f"have at most {most} texts; ask for fewer --texts, or have more found: more contexts under "
            "evaluation.features in the sweep file, then gsae-ray run SWEEP"
        )
    drawn = draw(subject, eligible, tables.about["d_sae"], design)
    texts, densities = Texts(tables), tables.features["density"]
    features = [
        [Feature(number, densities[number].as_py(), texts.of(number, design.texts)) for number in of_rater]
        for of_rater in drawn.tolist()
    ]
    return Drawn(subject, tables.about, len(eligible), features)


def _check_alike(one: Drawn, other: Drawn) -> None:
    """Refuses tables that were asked for otherwise: the length of texts would tell raters which SAE is which.

    So would how they were chosen, if less surely.
    """
    asked = one.about.get("asked")
    if one is other or (asked is not None and asked == other.about.get("asked")):
        return
    raise UserError(
        f"evaluation.features: tables of the features of {_asked(one)} and {_asked(other)} were not made alike, which "
        f"raters could see; {_AGAIN}"
    )


def _asked(drawn: Drawn) -> str:
    subject, asked = drawn.subject, drawn.about.get("asked", {})
    settings = ", ".join(f"{name}: {'all' if value is None else value}" for name, value in asked.items())
    return f"{subject.trial} at {subject.site} of {subject.experiment} ({settings or 'settings not known'})"


def _check_same_text(better: Drawn, base: Drawn) -> None:
    """Refuses two SAEs of a site whose features were looked for in different text."""
    if any(better.about[name] != base.about[name] for name in ("heldout", "rows")):
        raise UserError(
            f"evaluation.features: the features of {better.subject.trial} and {base.subject.trial} at "
            f"{better.subject.site} of {better.subject.experiment} come of different text; {_AGAIN}"
        )


def _write(
    database: sqlite3.Connection, drawn: Sequence[Drawn], tokens: dict[str, str], couple: Couple, design: Design
) -> None:
    """Writes all of it. The order of each rater's items is random; so the two of a pair are anywhere."""
    settings = design.seed, couple.better.architecture, couple.base.architecture, design.match, design.texts
    made = __version__, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    database.execute("INSERT INTO study VALUES (?, ?, ?, ?, ?, ?, ?)", (*settings, *made))
    items: list[list[tuple[int, int]]] = [[] for _ in tokens]  # of each rater: (feature, pair)
    for each in drawn:
        sae = _insert_sae(database, each)
        for rater, features in enumerate(each.features):
            for pair, feature in enumerate(features):
                inserted = database.execute(
                    "INSERT INTO features (sae, feature, density, texts) VALUES (?, ?, ?, ?)",
                    (sae, feature.number, feature.density, json.dumps(feature.texts)),
                )
                items[rater].append((inserted.lastrowid or 0, pair))
    for number, (name, token) in enumerate(tokens.items()):
        database.execute("INSERT INTO raters VALUES (?, ?, ?)", (number + 1, name, token))
        order = _generator(design, "order", name).permutation(len(items[number]))
        database.executemany(
            "INSERT INTO items (rater, place, feature, pair) VALUES (?, ?, ?, ?)",
            [(number + 1, place, *items[number][item]) for place, item in enumerate(order, start=1)],
        )


def _insert_sae(database: sqlite3.Connection, drawn: Drawn) -> int:
    of, about = drawn.subject, drawn.about
    row = {
        **{name: getattr(of, name) for name in ("model", "site", "layer", "point", "architecture", "experiment")},
        **{"trial": of.trial, "run": of.run_id, "content": about["sae"], "heldout": about["heldout"], "l0": of.l0},
        "loss_recovered": of.loss_recovered if math.isfinite(of.loss_recovered) else None,
        **{"features": about["d_sae"], "drawn_from": drawn.drawn_from},
    }
    names = ", ".join(row)
    inserted = database.execute(f"INSERT INTO saes ({names}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
    return inserted.lastrowid or 0
