"""The file of a study: an SQLite database with all that raters are shown, and all that they answered.

Answers are added, never changed: the newest version of an item's answer counts, and what it replaced is still there.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from gsae_ray.errors import UserError, first_line

APPLICATION, VERSION = 0x67536165, 1
"""What marks an SQLite file as a study ("gSae"), and the version of its tables."""
PATIENCE_S = 10
"""Seconds that an answer waits for another one that is being written."""
LABELS = ("no", "maybe", "yes")
"""Answers to the question whether a feature is interpretable; each by its number, 0 to 2, which is what is averaged."""

TABLES = """
CREATE TABLE study (seed INTEGER NOT NULL, better TEXT NOT NULL, base TEXT NOT NULL, matched TEXT NOT NULL,
    texts INTEGER NOT NULL, made_by TEXT NOT NULL, made_at TEXT NOT NULL);
CREATE TABLE saes (id INTEGER PRIMARY KEY, model TEXT NOT NULL, site TEXT NOT NULL, layer INTEGER, point TEXT NOT NULL,
    architecture TEXT NOT NULL, experiment TEXT NOT NULL, trial TEXT NOT NULL, run TEXT NOT NULL, content TEXT NOT NULL,
    heldout TEXT NOT NULL, l0 REAL NOT NULL, loss_recovered REAL, features INTEGER NOT NULL,
    drawn_from INTEGER NOT NULL);
CREATE TABLE features (id INTEGER PRIMARY KEY, sae INTEGER NOT NULL REFERENCES saes, feature INTEGER NOT NULL,
    density REAL NOT NULL, texts TEXT NOT NULL, UNIQUE (sae, feature));
CREATE TABLE raters (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL UNIQUE);
CREATE TABLE items (id INTEGER PRIMARY KEY, rater INTEGER NOT NULL REFERENCES raters, place INTEGER NOT NULL,
    feature INTEGER NOT NULL REFERENCES features, pair INTEGER NOT NULL, UNIQUE (rater, place));
CREATE TABLE answers (item INTEGER NOT NULL REFERENCES items, version INTEGER NOT NULL CHECK (version > 0),
    explanation TEXT NOT NULL, label INTEGER CHECK (label IN (0, 1, 2)), seconds REAL NOT NULL CHECK (seconds >= 0),
    window TEXT NOT NULL, at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')), PRIMARY KEY (item, version));
CREATE VIEW newest AS SELECT item, max(version) AS version, explanation, label, window FROM answers GROUP BY item;
"""
"""A pair is a number within the rater's items of one site: two features, one of either SAE.

`features` and `drawn_from` of an SAE: how many it has, and how many of them have enough texts. An answer's `seconds`
are those since the answer before it, so that an item took the sum over its versions.
"""


def make(path: Path) -> sqlite3.Connection:
    """An empty study at a path where there is nothing; only its user may read it, as raters' tokens are in it."""
    path.touch(mode=0o600, exist_ok=False)
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};{TABLES}")
    return database


@contextlib.contextmanager
def opened(path: Path, writing: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection to a study, in one transaction, which is kept whole or not at all.

    With a write-ahead log, so that readers do not wait for an answer that is being written, and synced at each commit.

    Raises:
        UserError: there is no study at that path, or one of another version, or the file cannot be read or written.
    """
    if not path.is_file():
        raise UserError(
            f"STUDY: there is no file {path}; make one with `gsae-ray study create EXPERIMENT --pairs 10 --raters 2 "
            f"--seed 0 --out {path}`"
        )
    try:
        with contextlib.closing(_connect(path)) as database:
            database.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
            with database:
                yield database
    except sqlite3.Error as error:
        raise UserError(
            f"STUDY: {path} cannot be used ({first_line(error)}); its folder has to be writable for this user, on a "
            "disk of this machine, with room on it"
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, PATIENCE_S, isolation_level=None)
    try:
        (application,), (version,) = (
            database.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
    except sqlite3.DatabaseError as error:
        database.close()
        if isinstance(error, sqlite3.OperationalError):  # it cannot be opened, which says nothing of what it is
            raise
        raise UserError(f"STUDY: {path} is damaged, or no study of `gsae-ray study create`") from error
    if (application, version) != (APPLICATION, VERSION):
        database.close()
        what = f"a study of version {version}, not {VERSION}" if application == APPLICATION else "no study"
        raise UserError(f"STUDY: {path} is {what}; give a file that `gsae-ray study create` of this version has made")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA foreign_keys = ON")
    return database
