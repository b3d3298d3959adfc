"""The row stream's geometry: blocks of rows, the chunks of a block. Follows from the tokens alone; no data here."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from functools import cached_property

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How many rows each block has, and how a site's rows of a block are cut into chunks."""

    rows: tuple[int, ...]
    """Rows of each block."""
    widths: dict[str, int]
    """Site name -> n, coordinates of a row."""
    dtype: str
    chunk_bytes: int

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The row of the stream at which each block starts; one more than there are blocks."""
        return tuple(itertools.accumulate(self.rows, initial=0))

    def block_of(self, row: int) -> int:
        """The block that holds a row of the stream."""
        if not 0 <= row < self.starts[-1]:
            raise IndexError(f"row {row} of a stream of {self.starts[-1]} rows")
        return bisect.bisect_right(self.starts, row) - 1

    def blocks_for(self, rows: int) -> int:
        """How many blocks the first `rows` rows span."""
        return self.block_of(rows - 1) + 1 if rows else 0

    def chunks(self, block: int, site: str) -> list[tuple[int, int]]:
        """(first row, end row) of each chunk, counted within the block."""
        size = max(1, self.chunk_bytes // (self.widths[site] * DTYPE_BYTES[self.dtype]))
        rows = self.rows[block]
        return [(start, min(start + size, rows)) for start in range(0, rows, size)]

    def chunk_indices(self, block: int, made: Sequence[str], wanted: Sequence[str]) -> list[int]:
        """Where the chunks of a block at the sites `wanted` are, site by site, among those at the sites `made`."""
        counts = [len(self.chunks(block, site)) for site in made]
        spans = dict(zip(made, itertools.pairwise(itertools.accumulate(counts, initial=0)), strict=True))
        return [index for site in wanted for index in range(*spans[site])]

    def nbytes(self, block: int, sites: tuple[str, ...]) -> int:
        """Bytes of a block's activations at `sites`."""
        return self.rows[block] * DTYPE_BYTES[self.dtype] * sum(self.widths[site] for site in sites)
