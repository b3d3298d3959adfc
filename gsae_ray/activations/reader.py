"""The row stream as a trial reads it: batch n is rows [nB, (n+1)B), wherever they come from. No Ray here."""

from __future__ import annotations

import math
import time
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.errors import not_finite

SLAB_BYTES = 8 * 2**20
"""Copied out of a chunk at a time. A view is held only while it is copied: held views would pin shared memory."""


class BlockReader(Protocol):
    """Where a trial gets its blocks from."""

    def statistics(self) -> SiteStatistics:
        """Returns the statistics of block 0 at the trial's site."""

    def open(self, block: int) -> None:
        """Makes `block` the current one, waiting for it if need be; the one before is let go."""

    def chunk(self, index: int) -> NDArray[Any]:
        """Returns a view of a chunk of the current block, neither to be written to nor kept."""


def to_array(x: Tensor) -> NDArray[Any]:
    """A tensor as numpy, without a copy; bfloat16, which numpy lacks, as an int16 view."""
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


class RowStream:
    """Rows of one site, in order, from any position."""

    def __init__(self, source: BlockReader, layout: Layout, site: str, position: int = 0) -> None:
        self.source = source
        self.layout = layout
        self.site = site
        self.position = position
        """The next row of the stream."""
        self.wait_seconds = 0.0
        """Time spent waiting for blocks."""
        self._block = -1
        self._slab = torch.empty(0)
        """Its memory is used again and again: fresh pages cost the kernel as much as the copy."""
        self._slab_start = self._slab_end = -1
        """The rows of the stream that are in it."""
        self._slab_is_finite = True
        """Whether all of them are known to be finite."""

    def read(self, rows: int) -> Tensor:
        """The next `rows` rows [rows, n], in the layout's dtype, as memory of the caller's own.

        Raises:
            IndexError: the stream ends before.
            NumericError: a row is not finite.
        """
        first = self.position
        x_Rn = torch.empty(rows, self.layout.widths[self.site], dtype=self._dtype)
        done, finite = 0, True
        while done < rows:
            if not self._slab_start <= self.position < self._slab_end:
                self._load_slab()
            start, stop = self.position - self._slab_start, self._slab_end - self._slab_start
            part = self._slab[start:stop][: rows - done]
            x_Rn[done : done + len(part)] = part
            self.position += len(part)
            done += len(part)
            finite = finite and self._slab_is_finite
        if not finite and not (finite_R := x_Rn.isfinite().all(dim=1)).all():
            row = first + int((~finite_R).nonzero()[0])
            where = f"row {row:,} of the stream (block {self.layout.block_of(row)})"
            raise not_finite(f"activations at {self.site}", where, self.layout.dtype)
        return x_Rn

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.layout.dtype)
        return dtype

    def _load_slab(self) -> None:
        """Copies the part of a chunk that begins at the position."""
        started = time.perf_counter()
        block = self.layout.block_of(self.position)
        if block != self._block:
            self._slab_start = self._slab_end = -1
            self.source.open(block)
            self._block = block
        if not len(self._slab):
            n = self.layout.widths[self.site]
            self._slab = torch.empty(max(1, SLAB_BYTES // (n * self._dtype.itemsize)), n, dtype=self._dtype)
        start_of_block = self.layout.starts[block]
        within = self.position - start_of_block
        chunks = self.layout.chunks(block, self.site)
        index = next(i for i, (_, end) in enumerate(chunks) if within < end)
        first, end = chunks[index]
        stop = min(end, within + len(self._slab))
        to_array(self._slab)[: stop - within] = self.source.chunk(index)[within - first : stop - first]
        self._slab_start, self._slab_end = start_of_block + within, start_of_block + stop
        self.wait_seconds += time.perf_counter() - started
        # A sum is a fortieth of the work, and not finite where a row is not; of large rows it may be so too.
        self._slab_is_finite = math.isfinite(self._slab[: stop - within].sum(dtype=torch.float32))
