"""The row stream of activations on disk: groups in the order of the data's seed, cut into blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsae_ray.activation_files.groups import Groups, Located


class RowOrder:
    """Which rows each block has. Pass p over the groups has them in the order of (data seed, p), as documents have."""

    def __init__(
        self, groups: Groups, taken_K: NDArray[Any], seed: int, blocks: Sequence[int], as_they_lie: bool
    ) -> None:
        """Reads no rows.

        Args:
            groups: of the table.
            taken_K: those that the stream has, ascending; the others are held out.
            seed: of the data.
            blocks: rows of each block; together they may be more than one pass.
            as_they_lie: the first pass has the groups in the order of the files, in which they were shuffled before.
        """
        self.groups, self.taken_K, self.seed, self.as_they_lie = groups, taken_K, seed, as_they_lie
        self.starts = np.cumsum([0, *blocks])
        self._pass = -1
        self._order_K = self._ends_K = taken_K

    @property
    def rows_a_pass(self) -> int:
        """Rows of all groups that the stream has."""
        return int(self.groups.rows_G[self.taken_K].sum())

    def block(self, block: int) -> Located:
        """The rows of a block, ascending: files are read from their beginning to their end."""
        first, end = int(self.starts[block]), int(self.starts[block + 1])
        parts, whole = [], self.rows_a_pass
        for number in range(first // whole, -(-end // whole)):
            parts.append(self._of_pass(number, max(first - number * whole, 0), min(end - number * whole, whole)))
        index_R, position_R = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        ascending_R = np.argsort(index_R, kind="stable")
        return Located(index_R[ascending_R], position_R[ascending_R])

    def _of_pass(self, number: int, first: int, end: int) -> Located:
        """Rows first to end − 1 of a pass."""
        if number != self._pass:
            self._pass, self._order_K = number, self._order(number)
            self._ends_K = np.cumsum(self.groups.rows_G[self._order_K])
        left, right = np.searchsorted(self._ends_K, [first, end], side="right")
        found = self.groups.locate(self._order_K[left : right + 1])
        before = self._ends_K[left - 1] if left else 0
        rows = slice(first - before, end - before)
        return Located(found.index_R[rows], found.position_R[rows])

    def _order(self, number: int) -> NDArray[Any]:
        if number == 0 and self.as_they_lie:
            return self.taken_K
        return np.random.RandomState([self.seed, number]).permutation(self.taken_K)


def cut(needed: int, rows_a_pass: int, size: int, first: Sequence[int], repeat: bool) -> tuple[int, ...]:
    """Rows of each block, of so many blocks as have the rows that are needed, or as there are.

    Args:
        needed: rows.
        rows_a_pass: how many there are.
        size: rows of a block.
        first: rows of the first blocks, where they are other ones.
        repeat: whether the stream starts again when the rows end.
    """
    blocks: list[int] = []
    while (done := sum(blocks)) < needed and (repeat or done < rows_a_pass):
        wanted = first[len(blocks)] if len(blocks) < len(first) else size
        blocks.append(wanted if repeat else min(wanted, rows_a_pass - done))
    return tuple(blocks)
