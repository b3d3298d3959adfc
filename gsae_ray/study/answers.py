"""What raters are shown and what they answer: read from a study's file, and added to it."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path

from gsae_ray.study.database import opened
from gsae_ray.study.texts import Text


@dataclasses.dataclass(frozen=True)
class Rater:
    """A rater and how far this one is."""

    id: int
    name: str
    token: str
    done: int
    total: int


@dataclasses.dataclass(frozen=True)
class Item:
    """One feature of a rater's, without anything that says whose feature it is."""

    place: int
    """From 1 on."""
    version: int
    """How often it was answered."""
    explanation: str
    label: int | None
    """By `database.LABELS`; None where only the explanation is there."""
    texts: list[Text]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a rater's page sends."""

    place: int
    seen: int
    """The item's version as the page has it."""
    window: str
    """What tells this window of a browser from others."""
    explanation: str
    label: int | None
    seconds: float
    """That the page was seen since the item's version before."""


class OutdatedError(Exception):
    """Another window has answered the item since this one had it; nothing is written."""


def raters(path: Path) -> list[Rater]:
    """All of them.

    Raises:
        UserError: as `database.opened`, as everything here does.
    """
    with opened(path) as database:
        ids = [row[0] for row in database.execute("SELECT id FROM raters ORDER BY id")]
        return [_rater(database, number) for number in ids]


def rater_of(path: Path, token: str) -> Rater | None:
    """Whose token that is."""
    with opened(path) as database:
        row = database.execute("SELECT id FROM raters WHERE token = ?", (token,)).fetchone()
        return None if row is None else _rater(database, row[0])


def _rater(database: sqlite3.Connection, number: int) -> Rater:
    return Rater(
        number,
        *database.execute("SELECT name, token FROM raters WHERE id = ?", (number,)).fetchone(),
        *database.execute(
            "SELECT count(newest.label), count(*) FROM items LEFT JOIN newest ON newest.item = items.id "
            "WHERE rater = ?",
            (number,),
        ).fetchone(),
    )


def next_place(path: Path, rater: int) -> int | None:
    """The first of a rater's items that is not rated; None where all are."""
    with opened(path) as database:
        return database.execute(
            "SELECT min(place) FROM items LEFT JOIN newest ON newest.item = items.id WHERE rater = ? AND label IS NULL",
            (rater,),
        ).fetchone()[0]


def item_at(path: Path, rater: int, place: int) -> Item | None:
    """A rater's item with its newest answer; None where there is none at that place."""
    with opened(path) as database:
        row = database.execute(
            "SELECT ifnull(version, 0), ifnull(explanation, ''), label, texts FROM items "
            "JOIN features ON features.id = items.feature LEFT JOIN newest ON newest.item = items.id "
            "WHERE rater = ? AND place = ?",
            (rater, place),
        ).fetchone()
    if row is None:
        return None
    version, explanation, label, texts = row
    return Item(place, version, explanation, label, json.loads(texts))


def save(path: Path, rater: int, answer: Answer) -> int:
    """Adds an answer, in one transaction that is on the disk when this returns.

    The same answer from the same window is taken once: its reply may have been lost.

    Returns:
        the item's new version.

    Raises:
        OutdatedError: the item has another version than the page saw.
        LookupError: there is no such item.
    """
    with opened(path, writing=True) as database:
        row = database.execute(
            "SELECT id, ifnull(version, 0), explanation, label, window FROM items "
            "LEFT JOIN newest ON newest.item = items.id WHERE rater = ? AND place = ?",
            (rater, answer.place),
        ).fetchone()
        if row is None:
            raise LookupError(f"there is no item {answer.place}")
        item, version, *newest = row
        if version == answer.seen + 1 and newest == [answer.explanation, answer.label, answer.window]:
            return version
        if version != answer.seen:
            raise OutdatedError
        database.execute(
            "INSERT INTO answers (item, version, explanation, label, seconds, window) VALUES (?, ?, ?, ?, ?, ?)",
            (item, version + 1, answer.explanation, answer.label, answer.seconds, answer.window),
        )
        return version + 1
