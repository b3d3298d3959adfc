"""The activation store: schedules producers for the trials of a launch. It holds opaque references to chunks, no data.

What is kept and what is produced next is decided by `retention`; where the trials are is known to `trial_positions`.
No Ray here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer_pool import ProducerClient, ProducerDied, ProducerPool, Ref
from gsae_ray.activations.production_log import ProductionLog
from gsae_ray.activations.retention import Place, Positions, RetentionPolicy
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.activations.trial_positions import Reader, ReaderSpec, TrialPositions
from gsae_ray.errors import NumericError, ProductionError, StaleAttemptError


@dataclasses.dataclass
class _Block:
    sites: tuple[str, ...]
    nbytes: int
    refs: list[Ref] | None = None
    """None while in production."""
    production: int = 0
    made: int = 0
    """Rows that are made, while in production."""

    @property
    def ready(self) -> bool:
        return self.refs is not None


@dataclasses.dataclass(eq=False)
class _PendingTask:
    name: str
    task: Ref
    times: int  # as long as another call it may take
    answer: asyncio.Future[Any]


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
    """What happened since the last report, a line each."""
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
        """Begins with an empty store; nothing is produced before a trial asks for it, or `produce_first` is called.

        Args:
            layout: of the row stream.
            producers: all of them, idle.
            readers: every trial that may read, whether it runs already or starts late.
            budget_bytes: what blocks, held and in production, may take together.
            timeout_s: a call that takes longer means that its producer hangs.
            record: log of stores before, which have died; what they held is lost.
            clock: seconds, for the trials' silence.
        """
        self.layout = layout
        self.budget_bytes = budget_bytes
        self._events: list[str] = []
        self._trials = TrialPositions(readers, clock, self._events, self._wanted_anew)
        self._policy = RetentionPolicy(layout, budget_bytes, self._trials.snapshot().reach)
        self._pool = ProducerPool(producers, timeout_s, self._pool_changed)
        self._blocks: dict[int, _Block] = {}
        self._statistics: dict[str, SiteStatistics] = {}
        self._pending_tasks: list[_PendingTask] = []
        self._failing: dict[int | _PendingTask, float] = {}
        """Blocks and tasks in which producers died -> since when."""
        self._error: str | None = None
        self._log = record.copy() if record else ProductionLog()
        self._lost = set(self._log.held)
        """Blocks that a fault took; producing them again is counted apart."""
        self._productions = 0

    def produce_first(self) -> None:
        """Has block 0 produced before trials ask for it: none begins without its statistics."""
        if rows := (now := self._trials.snapshot()).late_rows:
            self._start_productions(now._replace(places={0: Place(rows, reading=False, waiting=True)}), ahead=False)

    # ---- for trials ----

    async def begin_attempt(self, trial: str, attempt: int) -> None:
        """Notes that an attempt has begun, so that one that hangs before it attaches is seen to be silent."""
        self._trials.hear(trial, attempt).running = True

    async def attach(self, trial: str, attempt: int) -> dict[str, SiteStatistics]:
        """Starts a trial, or starts it again, and returns the statistics of block 0 at each of its sites.

        Older attempts of the trial are refused from now on.

        Raises:
            ProductionError: producers cannot make block 0.
            StaleAttemptError: a newer attempt has attached.
        """
        if attempt < (current := self._trials[trial].attempt):
            raise StaleAttemptError(f"{trial}: attempt {attempt} after attempt {current}")
        reader = self._trials.hear(trial, attempt)
        self._trials.begin(reader)
        sites = reader.spec.sites
        if not set(sites) <= set(self._statistics):
            await self.lease(trial, attempt, 0)
            if attempt == reader.attempt:
                self._trials.move(reader, None)
        return {site: self._statistics[site] for site in sites}

    async def lease(self, trial: str, attempt: int, block: int) -> list[Ref]:
        """Returns references to the chunks of `block` at the trial's sites, and lets the trial's block before go.

        Raises:
            ProductionError: producers cannot make it.
            StaleAttemptError: a newer attempt of the trial has attached.
        """
        reader = self._trials.hear(trial, attempt)
        reader.running = True
        self._trials.move(reader, block)
        if (refs := self._held(block, reader)) is None:
            if self._error:
                raise ProductionError(self._error)
            answer: asyncio.Future[list[Ref]] = asyncio.get_running_loop().create_future()
            self._trials.move(reader, block, answer)
            self._advance()
            return await answer
        self._advance()  # look ahead
        return refs

    async def lost(self, trial: str, attempt: int) -> None:
        """Has the chunks that the trial was given last produced again: they are gone, for example with their node."""
        reader = self._trials.hear(trial, attempt)
        held = self._blocks.get(reader.block) if reader.block is not None else None
        if held is not None and held.production == reader.production:  # another may have said so before
            assert reader.block is not None
            self._events.append(f"block {reader.block} is lost with the node that held it; it is made again")
            self._lost.add(reader.block)
            del self._blocks[reader.block]

    async def release(self, trial: str, attempt: int, finished: bool) -> None:
        """Lets the trial's block go: the trial has finished, or it stops for now."""
        reader = self._trials[trial]
        if attempt >= reader.attempt:  # a newer one: after the store's own death this may be its first call
            reader.attempt = attempt
            self._trials.end(reader, finished)
            self._advance()

    async def abandon(self, trial: str, finished: bool = True) -> None:
        """Releases a trial whose process is gone: for good, or until it is tried again."""
        if trial in self._trials:
            await self.release(trial, self._trials[trial].attempt, finished)

    async def beat(self, trial: str, attempt: int) -> None:
        """Notes that the trial's process is alive."""
        self._trials.hear(trial, attempt)

    async def run(self, name: str, task: Ref, times: int = 1) -> Any:
        """Has any producer run a task.

        Args:
            name: as `ProducerTask.name`.
            task: reference to it.
            times: how many times `producers.timeout_s` it may take.

        Returns:
            what it returns.

        Raises:
            NumericError: as the task.
            ProductionError: no producer can run it.
        """
        if self._pool.error is not None:
            raise ProductionError(self._pool.error)
        pending = _PendingTask(name, task, times, asyncio.get_running_loop().create_future())
        self._pending_tasks.append(pending)
        self._advance()
        return await pending.answer

    # ---- for producers ----

    async def made(self, block: int, rows: int) -> None:
        """Notes how many rows of `block`, which is in production, are made."""
        if block in self._blocks:
            self._blocks[block].made = rows

    async def say(self, line: str) -> None:
        """Has the user told a line, once a launch, however often producers find the same."""
        if line not in self._log.told:
            self._log.told.append(line)
            self._events.append(line)

    # ---- for the driver ----

    @property
    def record(self) -> ProductionLog:
        """What has been done so far, by this store and those before it."""
        self._log.held = sorted({b for b, held in self._blocks.items() if held.refs is not None} | self._lost)
        return self._log

    def report(self) -> StoreReport:
        """Says how things stand, and lets silent trials lapse: to be called every second or so."""
        self._trials.lapse()
        self._advance()
        events = (*self._pool.events, *self._events)
        self._pool.events.clear()
        self._events.clear()
        return StoreReport(
            record=self.record.copy(),
            waits=tuple(self._waits()),
            silent=self._trials.silent(),
            events=events,
            machines=frozenset(self._pool.machines),
        )

    def _waits(self) -> Iterable[Wait]:
        def place(reader: Reader) -> tuple[int, str]:
            return reader.block or 0, reader.name

        waiting = sorted(self._trials.waiting(), key=place)
        holding = (r for r in self._trials if r.block is not None and r.waiting is None)  # lapsed ones too
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

    def _held(self, block: int, reader: Reader) -> list[Ref] | None:
        """Returns the references to `block` at the reader's sites, which now holds them; None where there are none."""
        held, sites = self._blocks.get(block), reader.spec.sites
        if held is None or held.refs is None or not set(sites) <= set(held.sites):
            return None
        reader.production = held.production
        return [held.refs[index] for index in self.layout.chunk_indices(block, held.sites, sites)]

    def _serve(self, block: int) -> None:
        """Gives the trials that wait for `block` its references."""
        for reader in [r for r in self._trials if r.block == block and r.waiting is not None]:
            assert reader.waiting is not None
            if (refs := self._held(block, reader)) is not None:
                if not reader.waiting.done():
                    reader.waiting.set_result(refs)
                self._trials.move(reader, block)

    def _fail(self, error: str) -> None:
        """Ends production for good: trials that wait, or ask later, get the error."""
        self._error = self._error or error
        for reader in self._trials:
            if reader.waiting is not None:
                if not reader.waiting.done():
                    reader.waiting.set_exception(ProductionError(self._error))
                self._trials.move(reader, reader.block)

    # ---- scheduling ----

    def _wanted_anew(self, block: int) -> None:
        """Forgets failures of a block and its next one, which no trial wanted for a while."""
        self._failing.pop(block, None)
        self._failing.pop(block + 1, None)

    def _advance(self) -> None:
        """Gives idle producers work: blocks that are waited for, then tasks, then blocks ahead."""
        if not self._pool.idle:
            return
        positions = self._trials.snapshot()
        self._start_productions(positions, ahead=False)
        self._start_tasks()
        self._start_productions(positions, ahead=True)

    def _start_productions(self, positions: Positions, ahead: bool) -> None:
        if self._error is not None:  # a failed production would fail again
            return
        while self._pool.idle and (step := self._policy.plan(positions, self._blocks, ahead)) is not None:
            for block in step.evict:
                del self._blocks[block]
            self._productions += 1
            self._blocks[step.block] = _Block(step.sites, step.nbytes, production=self._productions)
            in_bytes = sum(block.nbytes for block in self._blocks.values())
            self._log.peak_bytes = max(self._log.peak_bytes, in_bytes)
            self._pool.spawn(self._produce(self._pool.take(), step.block))

    def _start_tasks(self) -> None:
        while self._pending_tasks and self._pool.idle:
            self._pool.spawn(self._run(self._pool.take(), self._pending_tasks.pop(0)))

    # ---- producers ----

    def _pool_changed(self) -> None:
        if self._pool.error is not None:
            self._fail(self._pool.error)
            while self._pending_tasks:
                self._answer(self._pending_tasks.pop(), ProductionError(self._pool.error))
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
            for line in filter(None, (found.norms.notice(site) for site, found in statistics.items())):
                await self.say(line)
            making.refs = list(refs)
            self._log.add(block, again=block in self._lost)
            self._lost.discard(block)
            self._serve(block)
        self._advance()

    async def _run(self, producer: ProducerClient, pending: _PendingTask) -> None:
        try:
            answer = await self._pool.call(producer, "run", pending.task, what=pending.name, times=pending.times)
        except ProducerDied as error:
            if (given_up := self._give_up(pending, pending.name, error)) is not None:
                self._answer(pending, ProductionError(given_up))
            else:
                self._pending_tasks.insert(0, pending)
        except (NumericError, ProductionError) as error:
            self._answer(pending, error)
        else:
            self._log.add_task(pending.name)
            self._answer(pending, answer)
        self._advance()

    def _answer(self, pending: _PendingTask, answer: Any) -> None:
        self._failing.pop(pending, None)
        if pending.answer.done():
            return
        if isinstance(answer, Exception):
            pending.answer.set_exception(answer)
        else:
            pending.answer.set_result(answer)

    def _give_up(self, what: int | _PendingTask, method: str, error: ProducerDied) -> str | None:
        """Why `what`, in which a producer has just died or hung, is not tried again; None where it is.

        A producer may die of anything, so a call is made again; but one that has failed for long would fail for ever.
        """
        timeout_s, now = self._pool.timeout_s, time.monotonic()
        longest = timeout_s if isinstance(what, int) else what.times * timeout_s
        hung_for = longest if str(error) == "no answer" else 0
        since = self._failing.setdefault(what, now - hung_for)
        if now - since < 2 * longest:
            return None
        of = f" block {what}" if isinstance(what, int) else ""
        return (
            f"{method}{of}: producers failed for {now - since:.0f} s, twice producers.timeout_s = {timeout_s:g} s "
            f"({error}); raise it if the model is that slow, lower producers.batch if they run out of memory. Finished "
            "work is kept: the same command with --resume goes on"
        )
