"""The metric rows of a trial: a file of each attempt, `metrics-{attempt}.jsonl`, of which the newest counts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import TypedDict

from gsae_ray.errors import DamagedError
from gsae_ray.files import LOCAL, JSONFile, Storage


class Row(TypedDict):
    """A line of metrics."""

    step: int
    timestamp: int
    metrics: dict[str, float]


ROW = JSONFile(Row, "rows are made again from the checkpoint before", sealed=True)

Cursor = tuple[int, int]
"""A place in a file of rows: (attempt, byte)."""
START: Cursor = (0, 0)


class MetricRows:
    """The files of metric rows in a trial's folder."""

    def __init__(self, folder: Path, storage: Storage = LOCAL) -> None:
        self.folder = folder
        self.storage = storage

    def path(self, attempt: int) -> Path:
        """The file of an attempt."""
        return self.folder / f"metrics-{attempt}.jsonl"

    def attempts(self) -> list[int]:
        """The attempts that have a file."""
        return numbers(self.storage.names(self.folder), "metrics-", ".jsonl")

    def read(self, cursor: Cursor = START) -> tuple[list[Row], Cursor]:
        """Whole metric rows of the newest attempt from a cursor on, up to a damaged one, and the cursor after them."""
        attempt = max(self.attempts(), default=0)
        if attempt == 0:
            return [], START
        offset = cursor[1] if cursor[0] == attempt else 0
        try:
            data = self.storage.read(self.path(attempt), offset)
        except FileNotFoundError:  # a newer attempt has just taken it away
            return [], START
        rows = []
        with contextlib.suppress(ValueError):
            for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
                rows.append(ROW.decode(line))
                offset += len(line)
        return rows, (attempt, offset)

    def append(self, attempt: int, row: Row) -> None:
        """Adds a row to the file of an attempt."""
        self.storage.append(self.path(attempt), ROW.encode(row))

    def begin(self, attempt: int, rows: Sequence[Row]) -> None:
        """Begins the file of an attempt with those rows; the files of older attempts go."""
        self.storage.replace(self.path(attempt), b"".join(map(ROW.encode, rows)))
        for older in self.attempts():
            if older < attempt:
                self.storage.remove(self.path(older))

    def sync(self, attempt: int) -> None:
        """Has the rows of the newest attempt survive a crash.

        Raises:
            DamagedError: they are not whole.
        """
        path = self.path(attempt)
        self.storage.append(path, b"")  # there may be none
        _, (_, end) = self.read()
        if end != len(self.storage.read(path)):
            raise DamagedError(f"{path}: this file is damaged; {ROW.remedy}")
        self.storage.sync(path)


def numbers(names: Sequence[str], prefix: str, suffix: str) -> list[int]:
    """The numbers between prefix and suffix in those names that have all three."""
    middles = [name[len(prefix) : -len(suffix)] for name in names if name.startswith(prefix) and name.endswith(suffix)]
    return [int(middle) for middle in middles if middle.isdecimal()]
