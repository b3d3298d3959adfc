"""Which rows of a table belong together: contexts of a language model, documents, images."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Located(NamedTuple):
    """Some rows of a table."""

    index_R: NDArray[Any]
    """Of each in the table."""
    position_R: NDArray[Any]
    """Of each in its context; zeros where there are no contexts."""


class Groups(Protocol):
    """Rows that are never parted: all of a group are trained on, or all held out."""

    @property
    def rows_G(self) -> NDArray[Any]:
        """Rows of each group."""

    @property
    def key_G(self) -> NDArray[Any]:
        """Groups with one key are of one document, say: they are held out together, and resampled together."""

    def locate(self, group_K: NDArray[Any]) -> Located:
        """The rows of some groups, group after group."""


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """Groups of rows that follow each other."""

    start_G: NDArray[Any]
    """The row of the table at which each starts."""
    rows_G: NDArray[Any]
    key_G: NDArray[Any]

    def locate(self, group_K: NDArray[Any]) -> Located:
        """See `Groups`."""
        index_R = ranges(self.start_G[group_K], self.rows_G[group_K])
        return Located(index_R, np.zeros(len(index_R), np.int64))


@dataclasses.dataclass(frozen=True)
class ContextGroups:
    """Groups that are contexts, of which some positions are rows."""

    kept_CT: NDArray[Any]
    """Which positions are rows."""
    whole: bool
    """Whether the table has all positions of the contexts, else only those."""
    rows_G: NDArray[Any] = dataclasses.field(init=False)
    start_G: NDArray[Any] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        rows_G = self.kept_CT.sum(1, dtype=np.int64)
        size_G = np.full_like(rows_G, self.kept_CT.shape[1]) if self.whole else rows_G
        object.__setattr__(self, "rows_G", rows_G)
        object.__setattr__(self, "start_G", np.cumsum(size_G) - size_G)

    @property
    def key_G(self) -> NDArray[Any]:
        return np.arange(len(self.rows_G))

    def locate(self, group_K: NDArray[Any]) -> Located:
        """See `Groups`."""
        of_R, position_R = self.kept_CT[group_K].nonzero()
        if self.whole:
            return Located(self.start_G[group_K][of_R] + position_R, position_R)
        return Located(ranges(self.start_G[group_K], self.rows_G[group_K]), position_R)


def every(rows: int, size: int, starts: NDArray[Any]) -> RowGroups:
    """Groups of `size` rows in order; none goes on from one file into the next, so that the last of a file is shorter.

    Args:
        rows: of the table.
        size: rows of a group.
        starts: the row of the table at which each file starts.
    """
    start_G = np.concatenate([np.arange(a, b, size) for a, b in zip(starts, [*starts[1:], rows], strict=True)])
    return RowGroups(start_G, np.diff(np.append(start_G, rows)), np.arange(len(start_G)))


def runs(key_R: NDArray[Any]) -> RowGroups:
    """Groups of rows that follow each other and have the same key."""
    start_G = np.concatenate([[0], np.flatnonzero(key_R[1:] != key_R[:-1]) + 1])
    return RowGroups(start_G, np.diff(np.append(start_G, len(key_R))), key_R[start_G])


def ranges(start_K: NDArray[Any], size_K: NDArray[Any]) -> NDArray[Any]:
    """start, start + 1, …, start + size − 1 of each, one after the other."""
    before_K = np.cumsum(size_K) - size_K
    return np.repeat(start_K - before_K, size_K) + np.arange(size_K.sum())
