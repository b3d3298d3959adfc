"""A store's surroundings on one event loop, in a time of their own: producers and trials are coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import selectors
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any
from unittest import mock

import numpy as np

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer_pool import ProducerDied
from gsae_ray.activations.production_log import Counters, ProductionLog
from gsae_ray.activations.statistics import Norms, SiteStatistics
from gsae_ray.activations.store import ActivationStore
from gsae_ray.activations.trial_positions import LAPSE_S, ReaderSpec
from gsae_ray.evaluation.metrics import Evaluation

TURN_S = 0.001
PATIENCE_S = 1e6
WIDTHS = {"left": 3, "right": 2}
PLACES = [("left", None), ("right", None), ("left", "right"), ("right", "left")]
"""The site and the target of a trial."""
TIMEOUT_S = 20.0
NORMS = Norms(rows=1000, median_square_norm=1.0, limit=100.0, left_out=0, sink_share=0.002, sink_positions=(1,))
EVALUATION = Evaluation({"l0": 7.0}, {"rows": [3.0]}, schema=1)


def layout_of(*rows: int, chunk_rows: int = 4) -> Layout:
    return Layout(rows, WIDTHS, "float32", chunk_bytes=chunk_rows * 12)


LAYOUT = layout_of(5, 6, 7, 4, 5, 6)


def rows_of(layout: Layout, block: int, site: str) -> np.ndarray[Any, Any]:
    """What every producer makes of a block at a site."""
    shape = layout.rows[block], layout.widths[site]
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1000 * block + 100_000 * len(site)


def even(blocks: int) -> tuple[Layout, int]:
    """Blocks of one size, and their bytes at both sites."""
    layout = layout_of(*[4] * blocks)
    return layout, layout.nbytes(0, tuple(WIDTHS))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class ArrayProducer:
    """Makes `rows_of` in a number of turns; counts what it makes and the bytes of it that are alive."""

    produced: Counter[int]
    live_bytes: list[int]

    def __init__(self, layout: Layout, slowness: int = 1, share: ArrayProducer | None = None) -> None:
        self.layout, self.slowness = layout, slowness
        self.produced = share.produced if share else Counter()
        self.live_bytes = share.live_bytes if share else [0, 0]  # now, peak
        self.tasks: list[Any] = []

    def _alive(self, nbytes: int) -> None:
        self.live_bytes[0] += nbytes
        self.live_bytes[1] = max(self.live_bytes)

    async def produce(self, block: int, sites: Sequence[str]) -> tuple[dict[str, SiteStatistics], list[Any]]:
        self.produced[block] += 1
        self._alive(self.layout.nbytes(block, tuple(sites)))
        await turns(self.slowness)
        chunks, statistics = [], {}
        for site in sites:
            x_Rn = rows_of(self.layout, block, site)
            if block == 0:
                statistics[site] = SiteStatistics(x_Rn.mean(0), float((x_Rn**2).sum(1).mean()), NORMS)
            for start, end in self.layout.chunks(block, site):
                chunks.append(x_Rn[start:end].copy())
                weakref.finalize(chunks[-1], self._alive, -chunks[-1].nbytes)
        return statistics, chunks

    async def run(self, task: Any) -> Evaluation:
        await turns(self.slowness)
        self.tasks.append(task)
        return EVALUATION

    async def ready(self) -> str:
        await turns(self.slowness)
        return "a machine"

    async def restart(self) -> None:
        pass


def producers_of(layout: Layout, count: int = 1, slowness: int = 1) -> list[ArrayProducer]:
    first = ArrayProducer(layout, slowness)
    return [first, *(ArrayProducer(layout, slowness, share=first) for _ in range(count - 1))]


def total_bytes(layout: Layout) -> int:
    return sum(layout.nbytes(block, tuple(WIDTHS)) for block in range(len(layout.rows)))


class Store(ActivationStore):
    """With room for everything unless told otherwise."""

    def __init__(
        self,
        layout: Layout,
        producers: Sequence[Any],
        readers: dict[str, ReaderSpec],
        budget: int | None = None,
        timeout_s: float = TIMEOUT_S,
        record: ProductionLog | None = None,
    ) -> None:
        budget = total_bytes(layout) if budget is None else budget
        super().__init__(layout, producers, readers, budget, timeout_s, record, clock=lambda: time.monotonic())
        self.specs = readers

    async def evaluate(self, *task: Any) -> Any:
        """Has a producer run `task`, by the name of an evaluation."""
        return await self.run("evaluate", task)

    def counters(self) -> Counters:
        return Counters.of(self.record, self.layout)


async def train(
    store: Store, name: str, slowness: int = 0, attempt: int = 1, start: int = 0, end: int | None = None
) -> None:
    """A trial: reads its rows from block `start` on, `slowness` turns a block, and checks every one of them."""
    layout, spec = store.layout, store.specs[name]
    statistics = await store.attach(name, attempt)
    assert tuple(statistics) == spec.sites
    for site in spec.sites:
        np.testing.assert_array_equal(statistics[site].mean, rows_of(layout, 0, site).mean(0))
    for block in range(start, layout.blocks_for(spec.rows) if end is None else end):
        assert_rows(store, name, block, await store.lease(name, attempt, block))
        await turns(slowness)
    if end is None:
        await store.release(name, attempt, finished=True)


def assert_rows(store: Store, name: str, block: int, chunks: Sequence[Any]) -> None:
    """They are the chunks of the trial's site, and after those the ones of its target."""
    left = list(chunks)
    for site in store.specs[name].sites:
        of_site = [left.pop(0) for _ in store.layout.chunks(block, site)]
        assert [len(chunk) for chunk in of_site] == [b - a for a, b in store.layout.chunks(block, site)]
        np.testing.assert_array_equal(np.concatenate(of_site), rows_of(store.layout, block, site))
    assert not left


async def go_on(store: Store, name: str, attempt: int, start: int) -> None:
    """A trial that knows of no store's death: it leases its next block."""
    for block in range(start, len(store.layout.rows)):
        assert_rows(store, name, block, await store.lease(name, attempt, block))
    await store.release(name, attempt, finished=True)


class _Clock(selectors.DefaultSelector):
    """Of an event loop: a turn takes a millisecond, and sleeping takes no longer than a turn."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += max(timeout or 0.0, TURN_S)
        return super().select(0)


def play(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs to the end, in the loop's own time; a deadlock is an error at once."""

    async def to_the_end() -> Any:
        try:
            return await asyncio.wait_for(work, PATIENCE_S)
        finally:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

    clock = _Clock()
    loop = asyncio.SelectorEventLoop(clock)
    with mock.patch("time.monotonic", lambda: clock.now), contextlib.closing(loop):
        return loop.run_until_complete(to_the_end())


def readers_of(layout: Layout, count: int, rows: int | None = None) -> dict[str, ReaderSpec]:
    """Trials t0, t1, … at alternating sites."""
    return {f"t{i}": ReaderSpec(list(WIDTHS)[i % 2], rows or layout.starts[-1]) for i in range(count)}


Fault = Callable[[], Awaitable[None]]


class Failing(ArrayProducer):
    """Before the calls of a method come its `faults`, one each; where there is none (any more), all is well."""

    def __init__(self, layout: Layout, slowness: int = 1, **faults: Iterable[Fault | None]) -> None:
        super().__init__(layout, slowness)
        self.faults = {method: iter(its) for method, its in faults.items()}
        self.calls: Counter[str] = Counter()

    async def _meet(self, method: str) -> None:
        self.calls[method] += 1
        if (fault := next(self.faults.get(method, iter(())), None)) is not None:
            await fault()

    async def produce(self, block: int, sites: Sequence[str]) -> Any:
        await self._meet("produce")
        return await super().produce(block, sites)

    async def run(self, task: Any) -> Evaluation:
        await self._meet("run")
        return await super().run(task)

    async def ready(self) -> str:
        await self._meet("ready")
        return await super().ready()

    async def restart(self) -> None:
        await self._meet("restart")


async def die() -> None:
    raise ProducerDied("its process died")


async def hang() -> None:
    await asyncio.Event().wait()


async def out_of_memory() -> None:
    raise RuntimeError("a long traceback\nCUDA out of memory")


def always(fault: Fault, after: int = 0) -> Iterable[Fault | None]:
    """In every call but the first ones."""
    return itertools.chain([None] * after, itertools.repeat(fault))


async def fast_and_silent(store: Store, end: int) -> asyncio.Future[None]:
    """t1 has leased block 0 and is not heard of any more, and t0 reads up to `end` as far as there is room."""
    await store.attach("t1", 1)
    await store.lease("t1", 1, 0)
    fast = asyncio.ensure_future(beating(store, "t0", train(store, "t0", end=end)))
    await turns(100)
    return fast


async def beating(store: Store, name: str, work: Coroutine[Any, Any, None], attempt: int = 1) -> None:
    """`work` of a trial whose heartbeats arrive."""

    async def beat() -> None:
        while True:
            await store.beat(name, attempt)
            await asyncio.sleep(LAPSE_S / 3)

    heart = asyncio.ensure_future(beat())
    try:
        await work
    finally:
        heart.cancel()
