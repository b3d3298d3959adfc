"""What raters have answered, in an SQLite file: no request is made twice, whatever is killed in between."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

from gsae_ray.errors import UserError, first_line
from gsae_ray.files import digest
from gsae_ray.raters.endpoint import Answer

APPLICATION = 0x67536172
"""What marks an SQLite file as one of answers ("gSar")."""
TABLE = """
CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, model TEXT NOT NULL, text TEXT NOT NULL,
    sent INTEGER NOT NULL, got INTEGER NOT NULL, at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')));
"""
PATIENCE_S = 60
"""Seconds that an answer waits for another process that writes."""


class Answers:
    """Answers by a hash of what they depend on: of model, messages and parameters. Threads may share it."""

    def __init__(self, path: Path) -> None:
        """Opens the file, which is made where there is none.

        Raises:
            UserError: something else is there, or it cannot be written.
        """
        self.path = path
        self._lock = threading.Lock()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, PATIENCE_S, isolation_level=None, check_same_thread=False)
            (application,) = self._database.execute("PRAGMA application_id").fetchone()
            (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if application != APPLICATION and tables:
                raise UserError(f"--answers: {path} is another database; give a file of its own")
            self._database.execute(f"PRAGMA application_id = {APPLICATION}")
            self._database.execute(TABLE)

    def get(self, request: dict[str, Any]) -> Answer | None:
        """The answer to a request (`Endpoint.identity`), if there is one."""
        with self._explained(), self._lock:
            row = self._database.execute(
                "SELECT text, sent, got FROM answers WHERE request = ?", [digest(request)]
            ).fetchone()
        return None if row is None else Answer(*row)

    def keep(self, request: dict[str, Any], answer: Answer) -> None:
        """Keeps an answer that has ended by itself; it is on disk when this returns. The first to a request stays."""
        row = digest(request), str(request["model"]), answer.text, answer.sent, answer.got
        with self._explained(), self._lock:
            self._database.execute(
                "INSERT OR IGNORE INTO answers (request, model, text, sent, got) VALUES (?, ?, ?, ?, ?)", row
            )

    def of_model(self, model: str) -> tuple[int, int]:
        """How many there are of a model, and how many tokens they have together."""
        with self._explained(), self._lock:
            count, got = self._database.execute(
                "SELECT count(*), coalesce(sum(got), 0) FROM answers WHERE model = ?", [model]
            ).fetchone()
        return count, got

    def close(self) -> None:
        with self._lock:  # after Ctrl-C a thread may still be at it
            self._database.close()

    @contextlib.contextmanager
    def _explained(self) -> Any:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"--answers: {self.path} cannot be used ({first_line(error)}); give a file in a folder that is "
                "writable, with room on its disk"
            ) from error
