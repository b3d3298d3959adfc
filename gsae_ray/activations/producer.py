"""The producer: makes blocks of activations from a source, and runs tasks on it. No Ray here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gsae_ray.activations.accumulator import StatisticsAccumulator
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.reader import to_array
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.activations.task import ProducerTask
from gsae_ray.language_model.source import SourceSpec


@dataclasses.dataclass(frozen=True)
class ProducerSpec:
    """What a producer needs to come up anywhere."""

    source: SourceSpec
    layout: Layout
    seed: int
    """Of the data: blocks are permuted by it."""
    threads: int


class Producer:
    """One activation source in one process. `produce` is pure: any producer makes the same block, bit for bit."""

    def __init__(self, spec: ProducerSpec) -> None:
        """Opens the source.

        Raises:
            UserError: as `SourceSpec.open`.
        """
        torch.set_num_threads(spec.threads)
        self.spec = spec
        self.source = spec.source.open()
        self._cache: dict[str, Any] = {}

    def produce(
        self, block: int, sites: Sequence[str], made: Callable[[int], None] = lambda _: None
    ) -> tuple[dict[str, SiteStatistics], list[NDArray[Any]]]:
        """Makes a block: its rows at `sites`, permuted by (data seed, block), in one pass over the source.

        Args:
            block: its number.
            sites: names of sites.
            made: is called after each batch with the number of rows that are made.

        Returns:
            for block 0 the statistics of each site; and the chunks: all of the first site's, then the second's, and so
            on. A chunk is [rows, n] in the layout's dtype; bfloat16, which numpy lacks, as an int16 view.
        """
        layout = self.spec.layout
        n_rows = layout.rows[block]
        destination = _inverse_permutation(n_rows, self.spec.seed, block)
        dtype = getattr(torch, layout.dtype)
        rows = {site: torch.empty(n_rows, layout.widths[site], dtype=dtype) for site in sites}
        accumulators = {site: StatisticsAccumulator(layout.widths[site]) for site in sites if block == 0}
        positions: list[torch.Tensor] = []
        done = 0
        for batch in self.source.block(block, sites):
            here = destination[done : done + len(batch.position_R)]
            done += len(batch.position_R)
            if done > n_rows:
                break
            for site, x_Rn in batch.rows.items():
                to_array(rows[site])[here] = to_array(x_Rn.cpu())  # in half the time that PyTorch takes
                if block == 0:
                    accumulators[site].add(x_Rn)
            positions.append(batch.position_R)
            del batch, x_Rn  # the next forward pass has the memory
            made(done)
        if done != n_rows:
            raise ValueError(f"block {block} has {done} rows or more at its source, {n_rows} in the layout")
        statistics = {
            site: accumulator.statistics(
                rows[site], torch.from_numpy(destination), torch.cat(positions), self.source.max_norm
            )
            for site, accumulator in accumulators.items()
        }
        chunks = [to_array(rows[site][a:b]) for site in sites for a, b in layout.chunks(block, site)]
        return statistics, chunks

    def run(self, task: ProducerTask, say: Callable[[str], None] = lambda _: None) -> Any:
        """Runs a task on the source; `say` is given what it tells the user, again and again."""
        return task.run(self.source, self._cache, say)


class LocalBlockReader:
    """A `BlockReader` from a producer in this process: a trial alone, without Ray."""

    def __init__(self, producer: Producer, *sites: str) -> None:
        """Makes no block yet.

        Args:
            producer: which makes the blocks.
            sites: of the trial: its own, and that of its target if it has one.
        """
        self.producer = producer
        self.sites = sites
        self._block = -1
        self._chunks: Sequence[NDArray[Any]] = ()
        self._statistics: dict[str, SiteStatistics] = {}

    def statistics(self) -> dict[str, SiteStatistics]:
        if not self._statistics:
            self.open(0)
        return self._statistics

    def open(self, block: int) -> None:
        if block != self._block:
            statistics, self._chunks = self.producer.produce(block, self.sites)
            self._statistics = self._statistics or statistics
            self._block = block

    def chunk(self, index: int) -> NDArray[Any]:
        return self._chunks[index]


def _inverse_permutation(rows: int, seed: int, block: int) -> NDArray[Any]:
    """Where in the block each row, in the order of the source, goes."""
    # RandomState's streams are frozen by numpy's compatibility policy; Generator's are not.
    return np.random.RandomState([seed, block]).permutation(rows)
