"""The row stream as a trial reads it: batch n is rows [nB, (n+1)B), wherever they come from. No Ray here."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.errors import not_finite

SLAB_BYTES = 8 * 2**20
"""Copied out of a chunk at a time. A view is held only while it is copied: held views would pin shared memory."""


class BlockReader(Protocol):
    """Where a trial gets its blocks from."""

    def statistics(self) -> dict[str, SiteStatistics]:
        """Returns the statistics of block 0 at each of the trial's sites."""

    def open(self, block: int) -> None:
        """Makes `block` the current one, waiting for it if need be; the one before is let go."""

    def chunk(self, index: int) -> NDArray[Any]:
        """Returns a view of a chunk of the current block, neither to be written to nor kept.

        Args:
            index: from 0 for the first chunk of the trial's site; those of its target, if it has one, follow.
        """


def to_array(x: Tensor) -> NDArray[Any]:
    """A tensor as numpy, without a copy; bfloat16, which numpy lacks, as an int16 view."""
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


@dataclasses.dataclass
class _Slab:
    """Rows of a site that are copied out of a chunk.

    Its memory is used again and again: fresh pages cost the kernel as much as the copy.
    """

    site: str
    rows_Rn: Tensor
    start: int = -1
    end: int = -1
    """The rows of the stream that are in it."""
    is_finite: bool = True
    """Whether all of them are known to be finite."""


class RowStream:
    """Rows of one site, in order, from any position; with a target, rows of another site in step with them.

    Blocks are permuted alike at all sites: the same row of two sites is of the same token.
    """

    def __init__(
        self, source: BlockReader, layout: Layout, site: str, target: str | None = None, position: int = 0
    ) -> None:
        self.source = source
        self.layout = layout
        self.site = site
        self.target = target
        self.position = position
        """The next row of the stream."""
        self.wait_seconds = 0.0
        """Time spent waiting for blocks."""
        self._block = -1
        self._slabs = [_Slab(name, torch.empty(0)) for name in self.sites]

    @classmethod
    def of(cls, source: BlockReader, layout: Layout, sites: Sequence[str]) -> Self:
        """The stream from its first row, of a site or of a site and its target."""
        site, *target = sites
        return cls(source, layout, site, target[0] if target else None)

    @property
    def sites(self) -> tuple[str, ...]:
        """The site, and the target if there is one."""
        return (self.site,) if self.target is None else (self.site, self.target)

    def read(self, rows: int) -> Tensor:
        """The next `rows` rows [rows, n] of the site, in the layout's dtype, as memory of the caller's own.

        Raises:
            IndexError: the stream ends before.
            NumericError: a row is not finite, be it of the target.
        """
        return self._read(rows)[0]

    def read_pairs(self, rows: int) -> tuple[Tensor, Tensor]:
        """The same of the site and of its target."""
        x_Rn, y_Rm = self._read(rows)
        return x_Rn, y_Rm

    def _read(self, rows: int) -> list[Tensor]:
        """The next rows of each site."""
        first = self.position
        read = [torch.empty(rows, self.layout.widths[site], dtype=self._dtype) for site in self.sites]
        done, finite = 0, True
        while done < rows:
            for slab in self._slabs:
                if not slab.start <= self.position < slab.end:
                    self._load(slab)
            count = min(rows - done, *(slab.end - self.position for slab in self._slabs))
            for x_Rn, slab in zip(read, self._slabs, strict=True):
                start = self.position - slab.start
                x_Rn[done : done + count] = slab.rows_Rn[start : start + count]
                finite = finite and slab.is_finite
            self.position += count
            done += count
        if not finite:
            self._check_finite(first, read)
        return read

    def _check_finite(self, first: int, read: list[Tensor]) -> None:
        """Checks rows, of which the first one is row `first` of the stream.

        Raises:
            NumericError: one is not finite.
        """
        for x_Rn, site in zip(read, self.sites, strict=True):
            if not (finite_R := x_Rn.isfinite().all(dim=1)).all():
                row = first + int((~finite_R).nonzero()[0])
                where = f"row {row:,} of the stream (block {self.layout.block_of(row)})"
                raise not_finite(f"activations at {site}", where, self.layout.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.layout.dtype)
        return dtype

    def _load(self, slab: _Slab) -> None:
        """Copies the part of a chunk that begins at the position."""
        started = time.perf_counter()
        block = self.layout.block_of(self.position)
        if block != self._block:
            for each in self._slabs:
                each.start = each.end = -1
            self.source.open(block)
            self._block = block
        if not len(slab.rows_Rn):
            n = self.layout.widths[slab.site]
            slab.rows_Rn = torch.empty(max(1, SLAB_BYTES // (n * self._dtype.itemsize)), n, dtype=self._dtype)
        start_of_block = self.layout.starts[block]
        within = self.position - start_of_block
        chunks = self.layout.chunks(block, slab.site)
        index = next(i for i, (_, end) in enumerate(chunks) if within < end)
        first, end = chunks[index]
        stop = min(end, within + len(slab.rows_Rn))
        before = 0 if slab is self._slabs[0] else len(self.layout.chunks(block, self.site))
        chunk = self.source.chunk(before + index)
        to_array(slab.rows_Rn)[: stop - within] = chunk[within - first : stop - first]
        del chunk  # a view that is held would pin shared memory
        slab.start, slab.end = start_of_block + within, start_of_block + stop
        self.wait_seconds += time.perf_counter() - started
        # A sum is a fortieth of the work, and not finite where a row is not; of large rows it may be so too.
        slab.is_finite = math.isfinite(slab.rows_Rn[: stop - within].sum(dtype=torch.float32))
