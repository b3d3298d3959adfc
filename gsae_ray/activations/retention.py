"""Which blocks the store keeps and which is produced next; and what that costs in forward passes.

The policy (laws 3 and 4: one forward, bounded):

- a block is produced once, at every site at which an unfinished trial needs it, and kept while the budget allows;
- the blocks that trials read, and their next ones, are never evicted;
- a prefix stays for the trials that have not started: as many of the first blocks as fit beside a window of two. All
  others pass through that window, the highest that no running trial will read being evicted first;
- what does not fit waits: a fast trial runs ahead into free room only. For the slowest trial's block and its next one
  unread blocks above may be evicted too. A trial that waits holds no block, one that holds a block never waits, and the
  window has room for any block, so some trial can always go on;
- a trial that has lapsed (it hangs, or its node is cut off) keeps the block that it holds, whose memory it pins, but
  nothing else is kept or produced for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from gsae_ray.activations.layout import Layout

WINDOW = 2
"""Blocks that running trials need at once: the one that they read and the next, which is made meanwhile."""


class Place(NamedTuple):
    """The running trials that read one block or wait for it, without those that have lapsed."""

    rows: int
    """Rows of the stream that the longest of these trials trains on."""
    reading: bool
    """Whether one of them holds the block."""
    waiting: bool
    """Whether one of them waits for the block."""


class Positions(NamedTuple):
    """Where all trials are in the row stream."""

    places: Mapping[int, Place]
    """Block -> the trials there."""
    pinned: frozenset[int]
    """Blocks that lapsed trials hold: their memory is free only when these trials are back, or dead."""
    late_rows: int
    """Rows of the stream that the longest trial trains on, of those that are at no block but will begin, or begin
    again; 0 where there is none."""
    reach: Mapping[str, int]
    """Site -> rows of the stream that the longest unfinished trial at it trains on."""


class HeldBlock(Protocol):
    """A block that is held, or in production."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Where its activations are from."""

    @property
    def nbytes(self) -> int:
        """Bytes of its activations."""

    @property
    def ready(self) -> bool:
        """Whether it is held; False while it is in production."""


class Production(NamedTuple):
    """The next block to produce."""

    block: int
    sites: tuple[str, ...]
    nbytes: int
    """Bytes of its activations at these sites."""
    evict: tuple[int, ...]
    """Blocks to evict before, so that it fits into the budget."""


class RetentionPolicy:
    """Decides what to produce and what to evict, from the trials' positions and the blocks that are held."""

    def __init__(self, layout: Layout, budget_bytes: int, reach: Mapping[str, int]) -> None:
        """Fixes the prefix that is kept for late trials.

        Args:
            layout: of the row stream.
            budget_bytes: what blocks, held and in production, may take together.
            reach: as `Positions.reach`, of all trials of the sweep.
        """
        self.layout = layout
        self.budget_bytes = budget_bytes
        sizes = [
            layout.nbytes(block, tuple(reach)) for block in range(layout.blocks_for(max(reach.values(), default=0)))
        ]
        beside_window = budget_bytes - WINDOW * max(sizes, default=0)
        self.prefix = sum(total <= beside_window for total in itertools.accumulate(sizes))
        """How many of the first blocks fit into the budget beside the window."""

    def plan(self, positions: Positions, held: Mapping[int, HeldBlock], ahead: bool = True) -> Production | None:
        """The most urgent block that has to be produced and can be; None where there is none.

        Blocks that a trial waits for come first, the lowest first; then those that a trial needs next.

        Args:
            positions: of all trials.
            held: blocks that are held or in production.
            ahead: also what no trial waits for yet.
        """
        for block in self._wanted(positions, ahead):
            sites = self._needed_sites(block, positions)
            current = held.get(block)
            if current is not None and (not current.ready or set(sites) <= set(current.sites)):
                continue
            nbytes = self.layout.nbytes(block, sites)
            evict = self._evict(block, nbytes, positions, held)
            if evict is not None:
                return Production(block, sites, nbytes, evict)
        return None

    def _wanted(self, positions: Positions, ahead: bool) -> Iterator[int]:
        """Blocks in the order of their urgency."""
        waited = {block for block, place in positions.places.items() if place.waiting}
        yield from sorted(waited)
        if ahead:
            following = {b + 1 for b, place in positions.places.items() if self._needs(place, b + 1)}
            yield from sorted(following - waited)

    def _needs(self, place: Place, block: int) -> bool:
        """Whether a trial at `place` trains on rows of `block`."""
        return block < len(self.layout.rows) and place.rows > self.layout.starts[block]

    def _needed_sites(self, block: int, positions: Positions) -> tuple[str, ...]:
        """The sites at which an unfinished trial reaches into `block`."""
        start = self.layout.starts[block]
        return tuple(sorted(site for site, rows in positions.reach.items() if rows > start))

    def _evict(
        self, block: int, nbytes: int, positions: Positions, held: Mapping[int, HeldBlock]
    ) -> tuple[int, ...] | None:
        """The blocks to evict until `nbytes` for `block` fit; None where they cannot.

        Never one that is in use, or kept for late trials. First those that no running trial will read, the highest
        first; then, if the slowest trial needs `block`, those above it, the highest first. A faster trial waits.
        """
        free = self.budget_bytes - sum(b.nbytes for b in held.values()) + (held[block].nbytes if block in held else 0)
        if free >= nbytes:
            return ()
        kept, in_use = self._kept(positions), _in_use(positions)
        evictable = [b for b, its in held.items() if b >= kept and b not in in_use and its.ready]
        unread = {b for b in evictable if any(at <= b and self._needs(p, b) for at, p in positions.places.items())}
        of_slowest = block <= min(positions.places) + 1
        order = sorted((b for b in evictable if b not in unread), reverse=True)
        order += sorted((b for b in unread if of_slowest and b > block), reverse=True)
        chosen: list[int] = []
        for victim in order:
            if free >= nbytes:
                break
            chosen.append(victim)
            free += held[victim].nbytes
        return tuple(chosen) if free >= nbytes else None

    def _kept(self, positions: Positions) -> int:
        """How many of the first blocks stay for trials that do not run yet; fewer, where lapsed trials pin others."""
        return min(self.prefix - len(positions.pinned), self.layout.blocks_for(positions.late_rows))


def _in_use(positions: Positions) -> set[int]:
    """The blocks that trials read or wait for; of those that read, the next one too.

    Not of those that wait: if all waited, what they need after that could fill the budget for ever.
    """
    following = {block + 1 for block, place in positions.places.items() if place.reading}
    return positions.places.keys() | following | positions.pinned


def kept_blocks(blocks: int, budget: int) -> int:
    """How many of a stream's blocks stay for trials that start late: all if they fit, else all but the window."""
    return blocks if blocks <= budget else max(0, budget - WINDOW)


def forward_ratio(waves: Sequence[int], budget: int) -> float:
    """Blocks through the model ÷ distinct blocks (law 3): every wave computes what was not kept.

    Beyond the budget a prefix of the stream is kept. The window passes over the rest and ends on the last blocks: the
    last wave finds these too, since it gives up the prefix behind it instead. So for W > 1 waves of N blocks and
    4 <= budget < N the ratio is 1 + (W − 1)(1 − (budget − 2) ÷ N) − 2 ÷ N.

    It is less where a budget is one block short (each wave finds one more), where later waves are shorter, and where
    all trials of a site end before others start: blocks that are made after that are smaller.

    Args:
        waves: blocks that the longest trial of each wave reads.
        budget: whole blocks that the store can hold, at all sites.
    """
    computed = distinct = before = 0
    for number, blocks in enumerate(waves, start=1):
        held = kept_blocks(distinct, budget)
        if held < distinct and number == len(waves) and blocks >= before:
            held += min(held, WINDOW)  # behind a prefix of one block there is room for one
        computed += max(0, blocks - held)
        distinct, before = max(distinct, blocks), blocks
    return computed / distinct
