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

import numpy as np

from gsae_ray.errors import UserError
from gsae_ray.feature_tables import FeatureTables
from gsae_ray.study.database import make
from gsae_ray.study.subjects import Couple, Match, Subject
from gsae_ray.study.texts import texts_of, with_enough_texts
from gsae_ray.version import __version__


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


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The features of an SAE that are in a study."""

    subject: Subject
    tables: FeatureTables
    drawn_from: int
    features: list[list[int]]
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
        UserError: there is such a file, an SAE has too few features with enough texts, or the two of a site were looked
            at on different text.
    """
    check_new(path)
    drawn: list[Drawn] = []
    for couple in couples:
        two = [draw(subject, tables_of(subject), design) for subject in couple]
        if len({each.tables.about["heldout"] for each in two}) > 1:
            raise UserError(
                f"{couple.better.site}: the features of {couple.better.trial} and {couple.base.trial} come of "
                f"different text; have their tables made again: gsae-ray features {couple.better.experiment}"
            )
        drawn += two
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


def draw(subject: Subject, tables: FeatureTables, design: Design) -> Drawn:
    """Draws the features of an SAE.

    Raises:
        UserError: too few have enough texts.
    """
    eligible = with_enough_texts(tables, design.texts)
    needed = design.raters * design.pairs
    if len(eligible) < needed:
        raise UserError(
            f"--pairs: {design.raters} raters with {design.pairs} pairs each take {needed} features of each SAE, and "
            f"{subject.trial} at {subject.site} has {len(eligible)} that fire and have {design.texts} texts, of "
            f"{tables.about['d_sae']}; ask for fewer (--pairs, --raters), or for fewer texts (--texts)"
        )
    random = _generator(design, "features", subject.site, subject.trial)
    features = random.choice(eligible, needed, replace=False).reshape(design.raters, design.pairs)
    return Drawn(subject, tables, len(eligible), features.tolist())


def _write(
    database: sqlite3.Connection, drawn: Sequence[Drawn], tokens: dict[str, str], couple: Couple, design: Design
) -> None:
    """Writes all of it. The order of each rater's items is random; so the two of a pair are anywhere."""
    settings = design.seed, couple.better.architecture, couple.base.architecture, design.match, design.texts
    made = __version__, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    database.execute("INSERT INTO study VALUES (?, ?, ?, ?, ?, ?, ?)", (*settings, *made))
    items: list[list[tuple[int, int]]] = [[] for _ in tokens]  # of each rater: (feature, pair)
    for each in drawn:
        sae, words = _insert_sae(database, each), each.tables.texts()
        densities = each.tables.features["density"]
        for rater, features in enumerate(each.features):
            for pair, feature in enumerate(features):
                texts = json.dumps(texts_of(each.tables, feature, design.texts, words))
                row = sae, feature, densities[feature].as_py(), texts
                inserted = database.execute(
                    "INSERT INTO features (sae, feature, density, texts) VALUES (?, ?, ?, ?)", row
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
    of, about = drawn.subject, drawn.tables.about
    row = {
        **{name: getattr(of, name) for name in ("model", "site", "layer", "point", "architecture", "experiment")},
        **{"trial": of.trial, "run": of.run_id, "content": about["sae"], "heldout": about["heldout"], "l0": of.l0},
        "loss_recovered": of.loss_recovered if math.isfinite(of.loss_recovered) else None,
        **{"features": about["d_sae"], "drawn_from": drawn.drawn_from},
    }
    names = ", ".join(row)
    inserted = database.execute(f"INSERT INTO saes ({names}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
    return inserted.lastrowid or 0
