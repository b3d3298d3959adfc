"""The activation store: who reads which block, what is kept, what a producer makes next. No Ray here, and no data:
it holds opaque references to chunks.

Policy (DESIGN: one forward, bounded):
- a block is produced once, for every site that an unfinished trial needs it at, and kept while the budget allows;
- the blocks that trials read, and their next ones, are never evicted;
- a prefix stays for the trials that have not started: as many of the first blocks as fit beside a window of two. All
  others pass through that window, the highest that no running trial will read going first;
- what does not fit waits: a fast trial runs ahead into free room only. For the slowest trial's block and its next one
  unread blocks above may go too. A trial that waits holds no block, one that holds a block never waits, and the window
  has room for any block, so some trial can always go on (or when those that hang are killed);
- a trial that has not been heard of for a while (it hangs, or its node is cut off) keeps the block that it holds, whose
  memory it pins, but nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer_pool import ProducerClient, ProducerDied, ProducerPool, Ref
from gsae_ray.activations.production_log import ProductionLog
from gsae_ray.activations.retention import WINDOW
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.errors import NumericError, ProductionError, StaleAttemptError
from gsae_ray.evaluation.metrics import Evaluation

LAPSE_S = 10.0
"""A trial that is silent for longer is not waited for."""


@dataclasses.dataclass(frozen=True)
class ReaderSpec:
    """A trial as the store knows it."""

    site: str
    rows: int
    """Rows of the stream that it trains on."""
    attempt: int = 0
    """The one that runs already, if one does: a store that takes another's place has not heard of it yet."""


@dataclasses.dataclass(eq=False)
class _Reader:
    name: str
    spec: ReaderSpec
    attempt: int = 0
    running: bool = False
    """Whether it has come and not gone again, as far as is known."""
    block: int | None = None
    """The block that it reads or waits for; None when it is not running."""
    waiting: asyncio.Future[list[Ref]] | None = None
    production: int = 0
    """Number of the production that it holds."""
    finished: bool = False
    heard: float = 0.0


@dataclasses.dataclass
class _Block:
    sites: tuple[str, ...]
    nbytes: int
    refs: list[Ref] | None = None
    """None while in production."""
    production: int = 0
    made: int = 0
    """Rows that are made, while in production."""


@dataclasses.dataclass(eq=False)
class _Request:
    """An evaluation that is asked for."""

    arguments: tuple[str, str, Ref, int | None]
    answer: asyncio.Future[Evaluation]


@dataclasses.dataclass(frozen=True)
class Wait:
    """A trial that waits for a block, and for what."""

    trial: str
    block: int
    reason: str


@dataclasses.dataclass(frozen=True)
class StoreReport:
    """What the driver sees of the store."""

    record: ProductionLog
    waits: tuple[Wait, ...]
    silent: dict[str, tuple[int, float]]
    """Running trials that have lapsed -> their attempt, and for how many seconds they have been silent."""
    events: tuple[str, ...]
    """What happened since the last look, a line each."""
    machines: frozenset[str]
    """Kinds of machines that producers have come back on."""


class ActivationStore:
    """Schedules producers for readers within a budget of bytes. All methods run on one event loop."""

    def __init__(
        self,
        layout: Layout,
        producers: Sequence[ProducerClient],
        readers: Mapping[str, ReaderSpec],
        budget_bytes: int,
        timeout_s: float,
        record: ProductionLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            readers: every trial that may read, whether it runs already or starts late.
            timeout_s: a call that takes longer means that its producer hangs.
            record: of the stores before this one, which have died; what they held is lost.
            clock: seconds, for the trials' silence.
        """
        self.layout = layout
        self.budget_bytes = budget_bytes
        self._readers = {
            name: _Reader(name, spec, spec.attempt, running=spec.attempt > 0, heard=clock())
            for name, spec in readers.items()
        }
        self._pool = ProducerPool(producers, timeout_s, self._pool_changed)
        self._blocks: dict[int, _Block] = {}
        self._at: dict[int, set[_Reader]] = {}
        """Block -> the trials that read it or wait for it, without those that have lapsed."""
        self._waiting: dict[int, set[_Reader]] = {}
        """Those of `_at` that wait."""
        self._lapsed: set[_Reader] = set()
        self._reach: dict[str, int] = {}
        """Site -> rows of the longest unfinished trial."""
        self._statistics: dict[str, SiteStatistics] = {}
        self._requests: list[_Request] = []
        self._failing: dict[int | _Request, float] = {}
        """Blocks in, and evaluations of, which producers died -> since when."""
        self._error: str | None = None
        self._record = record.copy() if record else ProductionLog()
        self._lost = set(self._record.held)
        """Blocks that a fault took; making them again is no forward pass of the policy's."""
        self._productions = 0
        self._events: list[str] = []
        self._clock = clock
        self._prefix = self._fitting_prefix()
        self._measure_reach()

    # ---- for trials ----

    async def begin_attempt(self, trial: str, attempt: int) -> None:
        """An attempt has begun; one that hangs before it attaches is seen to be silent."""
        self._hear(trial, attempt).running = True

    async def attach(self, trial: str, attempt: int) -> SiteStatistics:
        """A trial starts (again): older attempts are refused from now on. Returns block 0's statistics at its site."""
        if attempt < (current := self._readers[trial].attempt):
            raise StaleAttemptError(f"{trial}: attempt {attempt} after attempt {current}")
        reader = self._hear(trial, attempt)
        reader.running = True
        if reader.finished:
            reader.finished = False
            self._measure_reach()
        site = reader.spec.site
        if site not in self._statistics:
            await self.lease(trial, attempt, 0)
            if attempt == reader.attempt:
                self._move(reader, None)
        return self._statistics[site]

    async def lease(self, trial: str, attempt: int, block: int) -> list[Ref]:
        """References to the chunks of `block` at the trial's site. The trial's block before is let go.

        Raises:
            ProductionError: producers cannot make it.
            StaleAttemptError: a newer attempt of the trial has attached.
        """
        reader = self._hear(trial, attempt)
        reader.running = True
        self._move(reader, block)
        if (refs := self._held(block, reader)) is None:
            if self._error:
                raise ProductionError(self._error)
            answer: asyncio.Future[list[Ref]] = asyncio.get_running_loop().create_future()
            self._move(reader, block, answer)
            self._advance()
            return await answer
        self._advance()  # look ahead
        return refs

    async def lost(self, trial: str, attempt: int) -> None:
        """The chunks that the trial was given last are gone, with their node say: they are to be made again."""
        reader = self._hear(trial, attempt)
        held = self._blocks.get(reader.block) if reader.block is not None else None
        if held is not None and held.production == reader.production:  # another may have said so before
            assert reader.block is not None
            self._events.append(f"block {reader.block} is lost with the node that held it; it is made again")
            self._lost.add(reader.block)
            del self._blocks[reader.block]

    async def release(self, trial: str, attempt: int, finished: bool) -> None:
        """The trial reads no more: it has finished, or it stops for now."""
        reader = self._readers[trial]
        if attempt >= reader.attempt:  # a newer one: after the store's own death this may be its first call
            reader.attempt = attempt
            self._move(reader, None)
            self._lapsed.discard(reader)
            reader.running, reader.finished = False, finished
            self._measure_reach()
            self._advance()

    async def abandon(self, trial: str, finished: bool = True) -> None:
        """The trial's process is gone: for good, or until it is tried again."""
        if trial in self._readers:
            await self.release(trial, self._readers[trial].attempt, finished)

    async def beat(self, trial: str, attempt: int) -> None:
        """The trial's process is alive."""
        self._hear(trial, attempt)

    async def evaluate(self, site: str, cfg: str, weights: Ref, pursuit_l0: int | None = None) -> Evaluation:
        """`Producer.evaluate` of any producer."""
        if self._pool.error is not None:
            raise ProductionError(self._pool.error)
        request = _Request((site, cfg, weights, pursuit_l0), asyncio.get_running_loop().create_future())
        self._requests.append(request)
        self._advance()
        return await request.answer

    # ---- for producers ----

    async def made(self, block: int, rows: int) -> None:
        """So many rows of `block`, which is in production, are made."""
        if block in self._blocks:
            self._blocks[block].made = rows

    # ---- for the driver ----

    @property
    def record(self) -> ProductionLog:
        """What has been done so far, by this store and those before it."""
        self._record.held = sorted({b for b, held in self._blocks.items() if held.refs is not None} | self._lost)
        return self._record

    def report(self) -> StoreReport:
        """How things stand, trials that have lapsed included: to be called every second or so."""
        now = self._clock()
        for reader in self._readers.values():
            if reader.running and reader not in self._lapsed and now - reader.heard > LAPSE_S:
                self._lapsed.add(reader)
                self._leave(reader)
                self._events.append(f"{reader.name} is silent for {LAPSE_S:g} s; no trial waits for it any more")
        self._advance()
        events = (*self._pool.events, *self._events)
        self._pool.events.clear()
        self._events.clear()
        return StoreReport(
            record=self.record.copy(),
            waits=tuple(self._waits()),
            silent={r.name: (r.attempt, now - r.heard) for r in self._readers.values() if r in self._lapsed},
            events=events,
            machines=frozenset(self._pool.machines),
        )

    def _waits(self) -> Iterable[Wait]:
        def place(reader: _Reader) -> tuple[int, str]:
            return reader.block or 0, reader.name

        waiting = sorted((r for readers in self._waiting.values() for r in readers), key=place)
        holding = (r for r in self._readers.values() if r.block is not None and r.waiting is None)  # lapsed ones too
        slowest = [*sorted(holding, key=place)[:1], *waiting[:1]]
        for reader in waiting:
            assert reader.block is not None
            held = self._blocks.get(reader.block)
            before = min((place(r) for r in slowest if r.waiting is None or place(r)[0] < reader.block), default=None)
            if held is not None and held.refs is None:
                reason = f"{held.made:,} of its {self.layout.rows[reader.block]:,} rows are made"
            elif self._pool.all_gone:
                reason = "no producer is alive"
            elif not self._pool.idle:
                reason = "all producers are busy"
            elif before is None:
                reason = "there is no room before a block in production is made"
            else:
                reason = f"there is no room before {before[1]} has read block {before[0]}"
            yield Wait(reader.name, reader.block, reason)

    # ---- readers ----

    def _hear(self, trial: str, attempt: int) -> _Reader:
        """The trial, of which this is news.

        Attempts are numbered by storage: after the store's own death the first call of any kind tells the number.
        """
        reader = self._readers[trial]
        if attempt < reader.attempt:
            raise StaleAttemptError(f"{trial}: attempt {attempt} while attempt {reader.attempt} runs")
        if attempt > reader.attempt:
            self._move(reader, None)
            reader.attempt = attempt
        reader.heard = self._clock()
        if reader in self._lapsed:
            self._lapsed.remove(reader)
            self._events.append(f"{reader.name} is heard of again")
            self._move(reader, reader.block, reader.waiting)
        return reader

    def _leave(self, reader: _Reader) -> None:
        """Takes the trial out of `_at` and `_waiting`."""
        for places in (self._at, self._waiting):
            if reader.block is not None and reader in (readers := places.get(reader.block, set())):
                readers.remove(reader)
                if not readers:
                    del places[reader.block]

    def _move(self, reader: _Reader, block: int | None, waiting: asyncio.Future[list[Ref]] | None = None) -> None:
        """The trial reads, or waits for, `block` now."""
        self._leave(reader)
        if reader.waiting not in (None, waiting) and not reader.waiting.done():
            reader.waiting.set_exception(StaleAttemptError(f"{reader.name}: a newer call has taken this one's place"))
            reader.waiting.exception()  # whoever waited may be gone
        reader.block, reader.waiting = block, waiting
        if block is not None and reader not in self._lapsed:
            if block not in self._at:  # it and the next one were not wanted for a while, which is no failing
                self._failing.pop(block, None)
                self._failing.pop(block + 1, None)
            self._at.setdefault(block, set()).add(reader)
            if waiting is not None:
                self._waiting.setdefault(block, set()).add(reader)

    def _held(self, block: int, reader: _Reader) -> list[Ref] | None:
        """The references to `block` at the reader's site, which now holds them; None where they are to be made."""
        held, site = self._blocks.get(block), reader.spec.site
        if held is None or held.refs is None or site not in held.sites:
            return None
        reader.production = held.production
        before = held.sites[: held.sites.index(site)]
        start = sum(len(self.layout.chunks(block, other)) for other in before)
        return held.refs[start : start + len(self.layout.chunks(block, site))]

    def _serve(self, block: int) -> None:
        """Gives those who wait for `block` its references."""
        for reader in [r for r in self._readers.values() if r.block == block and r.waiting is not None]:
            assert reader.waiting is not None
            if (refs := self._held(block, reader)) is not None:
                if not reader.waiting.done():
                    reader.waiting.set_result(refs)
                self._move(reader, block)

    def _fail(self, error: str) -> None:
        """Nothing can be produced any more: those who wait are told, and those who come."""
        self._error = self._error or error
        for reader in self._readers.values():
            if reader.waiting is not None:
                if not reader.waiting.done():
                    reader.waiting.set_exception(ProductionError(self._error))
                self._move(reader, reader.block)

    def _measure_reach(self) -> None:
        self._reach = {}
        for reader in self._readers.values():
            if not reader.finished:
                site, rows = reader.spec.site, reader.spec.rows
                self._reach[site] = max(rows, self._reach.get(site, 0))

    # ---- scheduling ----

    @property
    def _bytes(self) -> int:
        return sum(block.nbytes for block in self._blocks.values())

    def _needed_sites(self, block: int) -> tuple[str, ...]:
        """Sites at which an unfinished trial reaches into `block`."""
        start = self.layout.starts[block]
        return tuple(sorted(site for site, rows in self._reach.items() if rows > start))

    def _wanted(self) -> list[tuple[int, bool]]:
        """(block, a trial waits for it) in order of urgency: what is waited for, lowest first; then one ahead."""
        ahead = {b + 1 for b in self._at if self._to_be_read(b + 1, [b])}
        return [(b, True) for b in sorted(self._waiting)] + [(b, False) for b in sorted(ahead - self._waiting.keys())]

    def _advance(self) -> None:
        """Gives idle producers work: blocks that are waited for, then evaluations, then blocks ahead."""
        in_use = self._in_use()
        for block, waited in self._wanted() if self._error is None else ():  # a failed production would fail again
            if not waited:
                self._start_evaluations()
            if not self._pool.idle:
                return
            sites = self._needed_sites(block)
            held = self._blocks.get(block)
            if held is not None and (held.refs is None or set(sites) <= set(held.sites)):
                continue
            nbytes = self.layout.nbytes(block, sites)
            if self._make_room(block, nbytes, in_use):
                self._productions += 1
                self._blocks[block] = _Block(sites, nbytes, production=self._productions)
                self._record.peak_bytes = max(self._record.peak_bytes, self._bytes)
                self._pool.spawn(self._produce(self._pool.take(), block))
        self._start_evaluations()

    def _start_evaluations(self) -> None:
        while self._requests and self._pool.idle:
            self._pool.spawn(self._evaluate(self._pool.take(), self._requests.pop(0)))

    def _in_use(self) -> set[int]:
        """The blocks that trials read or wait for; of those that read, the next one too.

        Not of those that wait: if all waited, what they will need after could fill the budget for ever.
        """
        reading = [b for b, readers in self._at.items() if len(readers) > len(self._waiting.get(b, ()))]
        return set(self._at) | {b + 1 for b in reading} | self._pinned

    @property
    def _pinned(self) -> set[int]:
        """The blocks that lapsed trials hold: their memory is not free before those are back, or dead."""
        return {r.block for r in self._lapsed if r.waiting is None and r.block is not None}

    def _to_be_read(self, block: int, places: Iterable[int] | None = None) -> bool:
        """Whether a running trial (at one of `places`) has not read `block` yet."""
        if block >= len(self.layout.rows):
            return False
        start = self.layout.starts[block]
        places = self._at if places is None else places
        return any(b <= block and any(r.spec.rows > start for r in self._at[b]) for b in places)

    def _fitting_prefix(self) -> int:
        """How many of the first blocks fit into the budget beside the window."""
        sites = tuple({r.spec.site for r in self._readers.values()})
        blocks = range(self.layout.blocks_for(max((r.spec.rows for r in self._readers.values()), default=0)))
        sizes = [self.layout.nbytes(block, sites) for block in blocks]
        room = self.budget_bytes - WINDOW * max(sizes, default=0)
        return sum(total <= room for total in itertools.accumulate(sizes))

    def _kept(self) -> int:
        """How many of the first blocks stay for trials that do not run yet; fewer, where lapsed trials pin others."""
        late = [r.spec.rows for r in self._readers.values() if r.block is None and not r.finished]
        return min(self._prefix - len(self._pinned), self.layout.blocks_for(max(late, default=0)))

    def _make_room(self, block: int, nbytes: int, in_use: set[int]) -> bool:
        """Evicts blocks that are not `in_use` until `nbytes` fit; False where they cannot.

        Never one that is kept for late trials. First those that no running trial will read, the highest first; then,
        if the slowest trial needs `block`, those above it, the highest first. A faster trial waits.
        """
        free = self.budget_bytes - self._bytes + (self._blocks[block].nbytes if block in self._blocks else 0)
        chosen = []
        if free < nbytes:
            kept = self._kept()
            ready = [b for b, held in self._blocks.items() if b >= kept and b not in in_use and held.refs is not None]
            unread = sorted(b for b in ready if self._to_be_read(b) and b > block) if block <= min(self._at) + 1 else []
            evictable = unread + sorted(b for b in ready if not self._to_be_read(b))  # taken from the end
            while free < nbytes and evictable:
                chosen.append(evictable.pop())
                free += self._blocks[chosen[-1]].nbytes
        if free < nbytes:
            return False
        for victim in chosen:
            del self._blocks[victim]
        return True

    # ---- producers ----

    def _tell_of_sinks(self) -> None:
        """Once a site and launch, also when block 0 is made again."""
        for site, statistics in self._statistics.items():
            if site not in self._record.sinks_told and (notice := statistics.norms.notice(site)) is not None:
                self._record.sinks_told.append(site)
                self._events.append(notice)

    def _pool_changed(self) -> None:
        if self._pool.error is not None:
            self._fail(self._pool.error)
            while self._requests:
                self._answer(self._requests.pop(), ProductionError(self._pool.error))
        self._advance()

    async def _produce(self, producer: ProducerClient, block: int) -> None:
        making = self._blocks[block]
        try:
            statistics, refs = await self._pool.call(producer, "produce", block, making.sites)
        except ProducerDied as error:
            del self._blocks[block]  # wanted again
            if (given_up := self._give_up(block, "produce", error)) is not None:
                self._fail(given_up)
        except ProductionError as error:
            del self._blocks[block]
            self._fail(str(error))
        else:
            self._failing.pop(block, None)
            self._statistics.update({site: s for site, s in statistics.items() if site not in self._statistics})
            self._tell_of_sinks()
            making.refs = list(refs)
            self._record.add(block, again=block in self._lost)
            self._lost.discard(block)
            self._serve(block)
        self._advance()

    async def _evaluate(self, producer: ProducerClient, request: _Request) -> None:
        try:
            evaluation = await self._pool.call(producer, "evaluate", *request.arguments)
        except ProducerDied as error:
            if (given_up := self._give_up(request, "evaluate", error)) is not None:
                self._answer(request, ProductionError(given_up))
            else:
                self._requests.insert(0, request)
        except (NumericError, ProductionError) as error:
            self._answer(request, error)
        else:
            self._record.evaluations += 1
            self._answer(request, evaluation)
        self._advance()

    def _answer(self, request: _Request, answer: Evaluation | NumericError | ProductionError) -> None:
        self._failing.pop(request, None)
        if request.answer.done():
            return
        if isinstance(answer, Exception):
            request.answer.set_exception(answer)
        else:
            request.answer.set_result(answer)

    def _give_up(self, what: int | _Request, method: str, error: ProducerDied) -> str | None:
        """Why `what`, in which a producer has just died or hung, is not tried again; None where it is.

        A producer may die of anything, so a call is made again; but one that has failed for long would fail for ever.
        """
        timeout_s, now = self._pool.timeout_s, time.monotonic()
        hung_for = timeout_s if str(error) == "no answer" else 0
        since = self._failing.setdefault(what, now - hung_for)
        if now - since < 2 * timeout_s:
            return None
        of = f" block {what}" if isinstance(what, int) else ""
        return (
            f"{method}{of}: producers failed for {now - since:.0f} s, twice producers.timeout_s = {timeout_s:g} s "
            f"({error}); raise it if the model is that slow, lower producers.batch if they run out of memory. Finished "
            "work is kept: the same command with --resume goes on"
        )
