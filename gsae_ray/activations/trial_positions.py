"""Where each trial is in the row stream, which attempt of it runs, and whether that has been heard of lately."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gsae_ray.activations.retention import Place, Positions
from gsae_ray.errors import StaleAttemptError

LAPSE_S = 10.0
"""A trial that is silent for longer is not waited for."""


@dataclasses.dataclass(frozen=True)
class ReaderSpec:
    """A trial as the store knows it."""

    site: str
    rows: int
    """Rows of the stream that it trains on."""
    attempt: int = 0
    """The attempt that runs already, if one does: a store that replaces a dead one has not heard of it yet."""
    target: str | None = None
    """The site whose rows a transcoder is to compute from those at `site`."""

    @classmethod
    def of(cls, sites: Sequence[str], rows: int) -> ReaderSpec:
        """A trial that reads rows at its site, and at that of its target if there is a second one."""
        site, *target = sites
        return cls(site, rows, target=target[0] if target else None)

    @property
    def sites(self) -> tuple[str, ...]:
        """Where it reads rows: at its site, and at its target if it has one."""
        return (self.site,) if self.target is None else (self.site, self.target)


@dataclasses.dataclass(eq=False)
class Reader:
    """A trial, and what it does."""

    name: str
    spec: ReaderSpec
    attempt: int = 0
    running: bool = False
    """Whether it has begun and not ended, as far as is known."""
    block: int | None = None
    """The block that it reads or waits for; None while it does neither."""
    waiting: asyncio.Future[list[Any]] | None = None
    """Gets the block's references, while the trial waits for them."""
    production: int = 0
    """Number of the production that it holds."""
    finished: bool = False
    heard: float = 0.0
    """When it was heard of last."""


class TrialPositions:
    """All trials of a launch."""

    def __init__(
        self,
        specs: Mapping[str, ReaderSpec],
        clock: Callable[[], float],
        events: list[str],
        arrived: Callable[[int], None],
    ) -> None:
        """Begins with the attempts that run already.

        Args:
            specs: every trial that may read, whether it runs already or starts late.
            clock: seconds, for the trials' silence.
            events: gets a line when a trial lapses, and when it is heard of again.
            arrived: called with a block that a trial reads or waits for, where none did before.
        """
        self._clock = clock
        self._events = events
        self._arrived = arrived
        self._readers = {
            name: Reader(name, spec, spec.attempt, running=spec.attempt > 0, heard=clock())
            for name, spec in specs.items()
        }
        self._at: dict[int, set[Reader]] = {}
        """Block -> the trials that read it or wait for it, without those that have lapsed."""
        self._lapsed: set[Reader] = set()
        self._reach: dict[str, int] = {}
        self._measure_reach()

    def __getitem__(self, trial: str) -> Reader:
        return self._readers[trial]

    def __contains__(self, trial: str) -> bool:
        return trial in self._readers

    def __iter__(self) -> Iterator[Reader]:
        return iter(self._readers.values())

    def hear(self, trial: str, attempt: int) -> Reader:
        """The trial, which has just called.

        Attempts are numbered by storage: after the store's own death the first call of any kind tells the number.

        Raises:
            StaleAttemptError: a newer attempt of the trial runs.
        """
        reader = self._readers[trial]
        if attempt < reader.attempt:
            raise StaleAttemptError(f"{trial}: attempt {attempt} while attempt {reader.attempt} runs")
        if attempt > reader.attempt:
            self.move(reader, None)
            reader.attempt = attempt
        reader.heard = self._clock()
        if reader in self._lapsed:
            self._lapsed.remove(reader)
            self._events.append(f"{reader.name} is heard of again")
            self.move(reader, reader.block, reader.waiting)
        return reader

    def begin(self, reader: Reader) -> None:
        """Notes that the trial runs. One that had finished may begin again: its last state may be lost."""
        reader.running = True
        if reader.finished:
            reader.finished = False
            self._measure_reach()

    def end(self, reader: Reader, finished: bool) -> None:
        """The trial reads no more: it has finished, or it stops for now."""
        self.move(reader, None)
        self._lapsed.discard(reader)
        reader.running, reader.finished = False, finished
        self._measure_reach()

    def move(self, reader: Reader, block: int | None, waiting: asyncio.Future[list[Any]] | None = None) -> None:
        """The trial now reads `block`, or waits for it."""
        self._leave(reader)
        if reader.waiting not in (None, waiting) and not reader.waiting.done():
            reader.waiting.set_exception(StaleAttemptError(f"{reader.name}: a newer call has taken this one's place"))
            reader.waiting.exception()  # whoever waited may be gone
        reader.block, reader.waiting = block, waiting
        if block is not None and reader not in self._lapsed:
            if block not in self._at:
                self._arrived(block)
            self._at.setdefault(block, set()).add(reader)

    def _leave(self, reader: Reader) -> None:
        """Takes the trial out of `_at`."""
        if reader.block is not None and reader in (readers := self._at.get(reader.block, set())):
            readers.remove(reader)
            if not readers:
                del self._at[reader.block]

    def lapse(self) -> None:
        """Running trials that have been silent for too long are not waited for any more."""
        now = self._clock()
        for reader in self:
            if reader.running and reader not in self._lapsed and now - reader.heard > LAPSE_S:
                self._lapsed.add(reader)
                self._leave(reader)
                self._events.append(f"{reader.name} is silent for {LAPSE_S:g} s; no trial waits for it any more")

    def silent(self) -> dict[str, tuple[int, float]]:
        """Running trials that have lapsed -> their attempt, and for how many seconds they have been silent."""
        now = self._clock()
        return {r.name: (r.attempt, now - r.heard) for r in self if r in self._lapsed}

    def waiting(self) -> list[Reader]:
        """The trials that wait for a block, without those that have lapsed."""
        return [reader for readers in self._at.values() for reader in readers if reader.waiting is not None]

    def snapshot(self) -> Positions:
        """Where all trials are."""
        places = {
            block: Place(
                rows=max(r.spec.rows for r in readers),
                reading=any(r.waiting is None for r in readers),
                waiting=any(r.waiting is not None for r in readers),
            )
            for block, readers in self._at.items()
        }
        return Positions(
            places=places,
            pinned=frozenset(r.block for r in self._lapsed if r.waiting is None and r.block is not None),
            late_rows=max((r.spec.rows for r in self if r.block is None and not r.finished), default=0),
            reach=self._reach,
        )

    def _measure_reach(self) -> None:
        self._reach = {}
        for reader in self:
            for site in () if reader.finished else reader.spec.sites:
                self._reach[site] = max(reader.spec.rows, self._reach.get(site, 0))
