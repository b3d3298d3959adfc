"""The activation store: who reads which block, what is kept, what a producer makes next. No Ray here, and no data:
it holds opaque references to chunks.

Policy (DESIGN: one forward, bounded):
- a block is produced once, for every site that an unfinished trial needs it at, and kept while the budget allows;
- the blocks that trials read, and their next ones, are never evicted; beyond the budget the *highest* block that no
  running trial will read goes, so that a prefix stays for trials that start late;
- what does not fit waits, slowest trial first; for it blocks above may go, for a faster one none that is unread. A
  trial that waits holds no block, one that holds a block never waits, so some trial can always go on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gsae_ray.activations.chunks import SiteStatistics
from gsae_ray.activations.layout import Layout
from gsae_ray.errors import ProductionError, StaleAttemptError
from gsae_ray.errors import reason as reason_of
from gsae_ray.evaluation.metrics import Evaluation

Ref = Any
"""A reference to a chunk or to weights; the store passes it on and never looks inside."""
_Request = tuple[str, str, Ref, int | None]
"""The arguments of an evaluation."""


class ProducerDied(Exception):
    """The producer's process is gone; it may come back."""


class ProducerClient(Protocol):
    """How the store talks to a producer."""

    async def produce(self, block: int, sites: Sequence[str]) -> tuple[dict[str, SiteStatistics], list[Ref]]:
        """As `Producer.produce`, with references in place of chunks. Raises ProducerDied."""

    async def evaluate(self, site: str, cfg: str, weights: Ref, pursuit_l0: int | None) -> Evaluation:
        """As `Producer.evaluate`. Raises ProducerDied."""


@dataclasses.dataclass(frozen=True)
class ReaderSpec:
    """A trial as the store knows it."""

    site: str
    rows: int
    """Rows of the stream that it trains on."""


@dataclasses.dataclass
class _Reader:
    spec: ReaderSpec
    attempt: int = 0
    block: int | None = None
    """The block that it reads or waits for; None when it is not running."""
    finished: bool = False


@dataclasses.dataclass
class _Block:
    sites: tuple[str, ...]
    nbytes: int
    refs: list[Ref] | None = None
    """None while in production."""


@dataclasses.dataclass(frozen=True)
class Counters:
    """What the store has done since it started."""

    rows_produced: int
    """Rows of completed productions, repeated ones counted again."""
    rows_distinct: int
    """Rows of the blocks that were produced at least once."""
    blocks_held: int
    bytes_held: int
    """Of blocks held and in production."""
    peak_bytes: int
    evaluations: int
    """Of finished SAEs and of those in training, by their own encoders and by pursuit."""

    @property
    def forward_ratio(self) -> float:
        """1.00: every row went through the language model once."""
        return self.rows_produced / self.rows_distinct if self.rows_distinct else float("nan")


class ActivationStore:
    """Schedules producers for readers within a budget of bytes. All methods run on one event loop."""

    def __init__(
        self,
        layout: Layout,
        producers: Sequence[ProducerClient],
        readers: Mapping[str, ReaderSpec],
        budget_bytes: int,
        timeout_s: float,
    ) -> None:
        """
        Args:
            readers: every trial that may read, whether it runs already or starts late.
            timeout_s: a call that takes longer means that its producer hangs.
        """
        self.layout = layout
        self.budget_bytes = budget_bytes
        self.timeout_s = timeout_s
        self._readers = {name: _Reader(spec) for name, spec in readers.items()}
        self._idle = list(producers)
        self._blocks: dict[int, _Block] = {}
        self._statistics: dict[str, SiteStatistics] = {}
        self._evaluations: list[tuple[asyncio.Future[Evaluation], _Request]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._error: str | None = None
        self._produced: dict[int, int] = {}
        self._peak_bytes = 0
        self._evaluation_count = 0

    # ---- for trials ----

    async def attach(self, trial: str, attempt: int) -> SiteStatistics:
        """A trial starts (again): older attempts are refused from now on. Returns block 0's statistics at its site."""
        reader = self._readers[trial]
        if attempt < reader.attempt:
            raise StaleAttemptError(f"{trial}: attempt {attempt} after attempt {reader.attempt}")
        reader.attempt, reader.finished = attempt, False
        site = reader.spec.site
        if site not in self._statistics:
            await self.lease(trial, attempt, 0)
            reader.block = None
        return self._statistics[site]

    async def lease(self, trial: str, attempt: int, block: int) -> list[Ref]:
        """References to the chunks of `block` at the trial's site. The trial's block before is let go.

        Raises:
            ProductionError: producers cannot make it.
            StaleAttemptError: a newer attempt of the trial has attached.
        """
        reader = self._current(trial, attempt)
        reader.block = block
        async with self._changed:
            while (refs := self._refs(block, reader.spec.site)) is None:
                if self._error:
                    raise ProductionError(self._error)
                self._advance()
                await self._changed.wait()
                self._current(trial, attempt)
        self._advance()  # look ahead
        return refs

    async def release(self, trial: str, attempt: int, finished: bool) -> None:
        """The trial reads no more: it has finished, or it stops for now."""
        reader = self._readers[trial]
        if attempt == reader.attempt:
            reader.block, reader.finished = None, finished
            self._advance()

    async def abandon(self, trial: str, finished: bool = True) -> None:
        """The trial's process is gone: for good, or until it is tried again."""
        if trial in self._readers:
            await self.release(trial, self._readers[trial].attempt, finished)

    async def evaluate(self, site: str, cfg: str, weights: Ref, pursuit_l0: int | None = None) -> Evaluation:
        """`Producer.evaluate` of any producer."""
        future: asyncio.Future[Evaluation] = asyncio.get_running_loop().create_future()
        self._evaluations.append((future, (site, cfg, weights, pursuit_l0)))
        self._advance()
        return await future

    def counters(self) -> Counters:
        rows = self.layout.rows
        return Counters(
            rows_produced=sum(rows[block] * times for block, times in self._produced.items()),
            rows_distinct=sum(rows[block] for block in self._produced),
            blocks_held=sum(block.refs is not None for block in self._blocks.values()),
            bytes_held=self._bytes,
            peak_bytes=self._peak_bytes,
            evaluations=self._evaluation_count,
        )

    # ---- scheduling ----

    def _current(self, trial: str, attempt: int) -> _Reader:
        reader = self._readers[trial]
        if attempt != reader.attempt:
            raise StaleAttemptError(f"{trial}: attempt {attempt} while attempt {reader.attempt} runs")
        return reader

    @property
    def _bytes(self) -> int:
        return sum(block.nbytes for block in self._blocks.values())

    def _refs(self, block: int, site: str) -> list[Ref] | None:
        held = self._blocks.get(block)
        if held is None or held.refs is None or site not in held.sites:
            return None
        start = 0
        for other in held.sites:
            count = len(self.layout.chunks(block, other))
            if other == site:
                return held.refs[start : start + count]
            start += count
        return None

    def _needed_sites(self, block: int) -> tuple[str, ...]:
        """Sites at which an unfinished trial reaches into `block`."""
        start = self.layout.starts[block]
        sites = {r.spec.site for r in self._readers.values() if not r.finished and r.spec.rows > start}
        return tuple(sorted(sites))

    def _wanted(self) -> list[tuple[int, bool]]:
        """(block, a trial waits for it) in order of urgency: what is waited for, lowest first; then one ahead."""
        running = [r for r in self._readers.values() if r.block is not None]
        waited = {r.block for r in running if r.block is not None and self._refs(r.block, r.spec.site) is None}
        ahead = {
            r.block + 1 for r in running if r.block is not None and r.block + 1 < self.layout.blocks_for(r.spec.rows)
        }
        return [(b, True) for b in sorted(waited)] + [(b, False) for b in sorted(ahead - waited)]

    def _advance(self) -> None:
        """Gives idle producers work: blocks that are waited for, then evaluations, then blocks ahead."""
        for block, waited in self._wanted() if self._error is None else ():  # a failed production would fail again
            if not waited:
                self._start_evaluations()
            if not self._idle:
                return
            sites = self._needed_sites(block)
            held = self._blocks.get(block)
            if held is not None and (held.refs is None or set(sites) <= set(held.sites)):
                continue
            nbytes = self.layout.nbytes(block, sites)
            if self._make_room(block, nbytes):
                self._blocks[block] = _Block(sites, nbytes)
                self._peak_bytes = max(self._peak_bytes, self._bytes)
                self._spawn(self._produce(self._idle.pop(0), block, sites))
        self._start_evaluations()

    def _start_evaluations(self) -> None:
        while self._evaluations and self._idle:
            future, request = self._evaluations.pop(0)
            self._spawn(self._evaluate(self._idle.pop(0), future, request))

    def _in_use(self) -> set[int]:
        """The blocks that trials read or wait for; of those that read, the next one too.

        Not of those that wait: if all waited, what they will need after could fill the budget for ever.
        """
        running = [r for r in self._readers.values() if r.block is not None]
        reading = [r.block for r in running if r.block is not None and self._refs(r.block, r.spec.site) is not None]
        return {r.block for r in running if r.block is not None} | {block + 1 for block in reading}

    def _to_be_read(self, block: int) -> bool:
        """Whether a running trial has not read `block` yet."""
        start = self.layout.starts[block]
        return any(r.block is not None and r.block <= block and r.spec.rows > start for r in self._readers.values())

    def _make_room(self, block: int, nbytes: int) -> bool:
        """Evicts blocks until `nbytes` fit; False where they cannot.

        First those that no running trial will read, the highest first, so that a prefix stays for late trials; then
        those above `block`, the highest first. Never one below it that is still to be read: the fastest trial waits.
        """
        in_use = self._in_use()
        ready = [b for b, held in self._blocks.items() if b not in in_use and held.refs is not None]
        unread = sorted(b for b in ready if self._to_be_read(b) and b > block)
        evictable = unread + sorted(b for b in ready if not self._to_be_read(b))  # taken from the end
        free = self.budget_bytes - self._bytes + (self._blocks[block].nbytes if block in self._blocks else 0)
        chosen = []
        while free < nbytes and evictable:
            chosen.append(evictable.pop())
            free += self._blocks[chosen[-1]].nbytes
        if free < nbytes:
            return False
        for victim in chosen:
            del self._blocks[victim]
        return True

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _produce(self, producer: ProducerClient, block: int, sites: tuple[str, ...]) -> None:
        try:
            statistics, refs = await self._call(producer, "produce", block, sites)
        except ProductionError as error:
            self._error = str(error)
            del self._blocks[block]
        else:
            self._statistics.update({site: s for site, s in statistics.items() if site not in self._statistics})
            self._blocks[block].refs = list(refs)
            self._produced[block] = self._produced.get(block, 0) + 1
        await self._became_idle(producer)

    async def _evaluate(self, producer: ProducerClient, future: asyncio.Future[Evaluation], request: _Request) -> None:
        try:
            evaluation = await self._call(producer, "evaluate", *request)
        except ProductionError as error:
            if not future.cancelled():
                future.set_exception(error)
        else:
            self._evaluation_count += 1
            if not future.cancelled():
                future.set_result(evaluation)
        await self._became_idle(producer)

    async def _became_idle(self, producer: ProducerClient) -> None:
        self._idle.append(producer)
        async with self._changed:
            self._changed.notify_all()
        self._advance()

    async def _call(self, producer: ProducerClient, method: str, *args: Any) -> Any:
        """Calls a producer, again and again while its process comes back, until the deadline."""
        deadline = time.monotonic() + self.timeout_s
        reason = "no answer"
        while (left := deadline - time.monotonic()) > 0:
            try:
                return await asyncio.wait_for(getattr(producer, method)(*args), left)
            except asyncio.TimeoutError:
                pass
            except ProducerDied as error:
                reason = str(error)
            except Exception as error:
                raise ProductionError(f"{method} failed on a producer: {reason_of(error)}") from error
            await asyncio.sleep(0.2)
        raise ProductionError(
            f"{method} took a producer more than producers.timeout_s = {self.timeout_s:g} s ({reason}); raise it if "
            "the model is that slow. Finished work is kept: run the same command again to go on"
        )
