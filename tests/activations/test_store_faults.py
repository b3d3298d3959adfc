"""What the store does about objects that were lost, and about everything that can go wrong at once."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import (
    LAYOUT,
    PLACES,
    WIDTHS,
    Failing,
    Store,
    assert_rows,
    die,
    even,
    hang,
    layout_of,
    play,
    producers_of,
    readers_of,
    total_bytes,
    train,
    turns,
)

from gsae_ray.activations.trial_positions import LAPSE_S, ReaderSpec
from gsae_ray.errors import StaleAttemptError

# ---- objects that were lost -----------------------------------------------------------------------------------------


def test_a_block_reported_lost_is_made_again_and_counted_as_repeated_and_not_in_the_ratio() -> None:
    producers = producers_of(LAYOUT)

    async def work() -> Store:
        store = Store(LAYOUT, producers, readers_of(LAYOUT, 2))
        await train(store, "t0", end=3)  # holds block 2
        await store.lost("t0", 1)
        assert_rows(store, "t0", 2, await store.lease("t0", 1, 2))
        await train(store, "t1")
        await train(store, "t0", start=2)
        return store

    store = play(work())
    assert producers[0].produced == {**dict.fromkeys(range(6), 1), 2: 2}
    assert store.record.produced == dict.fromkeys(range(6), 1)
    assert store.record.repeated == {2: 1}
    assert store.counters().rows_repeated == LAYOUT.rows[2]
    assert store.counters().rows_produced == store.counters().rows_distinct == LAYOUT.starts[-1]
    assert store.counters().forward_ratio == 1.0
    assert [event for event in store.report().events if "block 2 is lost" in event]


def test_a_block_that_was_lost_is_among_those_of_the_record_until_it_is_made_again() -> None:
    async def work() -> None:
        store = Store(LAYOUT, producers_of(LAYOUT), readers_of(LAYOUT, 1))
        await train(store, "t0", end=3)
        held = list(store.record.held)
        await store.lost("t0", 1)
        assert store.record.held == held
        successor = Store(LAYOUT, producers_of(LAYOUT), readers_of(LAYOUT, 1), record=store.record)
        await train(successor, "t0", attempt=2, start=2)
        assert successor.counters().forward_ratio == 1.0
        assert successor.record.repeated[2] == 1

    play(work())


def test_a_second_report_of_the_same_loss_does_not_drop_the_new_block() -> None:
    producers = producers_of(LAYOUT)

    async def work() -> Store:
        store = Store(LAYOUT, producers, readers_of(LAYOUT, 4))
        for name in store.specs:
            await train(store, name, end=3)  # they all hold block 2
        await store.lost("t0", 1)
        assert_rows(store, "t0", 2, await store.lease("t0", 1, 2))
        for name in ("t1", "t2", "t3"):
            await store.lost(name, 1)
            assert_rows(store, name, 2, await store.lease(name, 1, 2))
        return store

    assert play(work()).record.repeated == {2: 1}
    assert producers[0].produced[2] == 2


def test_a_second_report_while_the_block_is_being_made_again_waits_for_it() -> None:
    producers = producers_of(LAYOUT, slowness=20)

    async def work() -> None:
        store = Store(LAYOUT, producers, readers_of(LAYOUT, 2))
        for name in store.specs:
            await train(store, name, end=3)
        await turns(50)
        await store.lost("t0", 1)
        first = asyncio.ensure_future(store.lease("t0", 1, 2))
        await turns(3)
        await store.lost("t1", 1)
        assert_rows(store, "t1", 2, await store.lease("t1", 1, 2))
        assert_rows(store, "t0", 2, await first)

    play(work())
    assert producers[0].produced[2] == 2


def test_a_block_that_is_lost_twice_is_made_a_third_time() -> None:
    async def work() -> None:
        store = Store(LAYOUT, producers_of(LAYOUT), readers_of(LAYOUT, 1))
        await train(store, "t0", end=3)
        for _ in range(2):
            await store.lost("t0", 1)
            assert_rows(store, "t0", 2, await store.lease("t0", 1, 2))
        assert store.record.repeated == {2: 2}
        assert store.counters().forward_ratio == 1.0

    play(work())


def test_a_loss_that_a_stale_attempt_reports_is_refused() -> None:
    producers = producers_of(LAYOUT)

    async def work() -> None:
        store = Store(LAYOUT, producers, readers_of(LAYOUT, 1))
        await train(store, "t0", end=3)
        await train(store, "t0", attempt=2, end=3)
        with pytest.raises(StaleAttemptError, match="attempt 1 while attempt 2"):
            await store.lost("t0", 1)
        await train(store, "t0", attempt=2)

    play(work())
    assert producers[0].produced == dict.fromkeys(range(6), 1)


def test_a_loss_that_is_reported_by_a_trial_that_holds_nothing_here_changes_nothing() -> None:
    async def work() -> None:
        store = Store(LAYOUT, producers_of(LAYOUT), readers_of(LAYOUT, 2))
        await train(store, "t0", end=3)
        await store.lost("t1", 1)  # of the store before this one
        await train(store, "t0", start=2)
        await train(store, "t1")
        assert store.record.repeated == {}

    play(work())


def test_a_block_evicted_by_policy_after_its_loss_counts_in_the_ratio_again() -> None:
    layout, block = even(6)

    async def work() -> Store:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), block)
        await train(store, "t0", end=1)
        await store.lost("t0", 1)
        await train(store, "t0")
        await train(store, "t1")
        return store

    record = play(work()).record
    assert record.repeated == {0: 1}
    assert record.produced[0] == 2  # for t0, and again for t1


# ---- everything at once ---------------------------------------------------------------------------------------------

HANG_S = 40.0
"""The driver kills a trial that is silent for longer."""


class Life:
    """A trial from its first attempt to its end; after each lease comes its next fate, and then all is well."""

    def __init__(self, store: Store, name: str, fates: list[str]) -> None:
        self.store, self.name, self.fates = store, name, fates
        self.attempt = 0
        self.read: set[int] = set()
        self._task: asyncio.Task[bool] | None = None

    async def run(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        start, over = 0, False
        while not over:
            self.attempt += 1
            self._task = asyncio.ensure_future(self._train(start))
            await asyncio.wait([self._task])
            over = not self._task.cancelled() and self._task.result()
            self._task = None
            if not over:
                await asyncio.sleep(0.1)
                await self.store.abandon(self.name, finished=False)
                await asyncio.sleep(0.1)
                start = max(self.read, default=0)  # the last checkpoint: within the block that it read last

    def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _train(self, start: int) -> bool:
        heart = asyncio.ensure_future(self._beat())
        try:
            await self.store.attach(self.name, self.attempt)
            for block in range(start, self.store.layout.blocks_for(self.store.specs[self.name].rows)):
                chunks = await self.store.lease(self.name, self.attempt, block)
                fate = self.fates.pop(0) if self.fates else "well"
                if fate == "lost":
                    chunks = []
                    await self.store.lost(self.name, self.attempt)
                    chunks = await self.store.lease(self.name, self.attempt, block)
                elif fate == "slow":
                    await asyncio.sleep(3)
                elif fate == "lapse":
                    heart.cancel()
                    await asyncio.sleep(2 * LAPSE_S)
                    heart = asyncio.ensure_future(self._beat())
                elif fate == "hang":
                    heart.cancel()
                    await hang()
                elif fate == "die":
                    return False
                assert_rows(self.store, self.name, block, chunks)
                self.read.add(block)
                await turns(2)
            chunks = []
            await self.store.release(self.name, self.attempt, finished=True)
            return True
        finally:
            heart.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(3)
            await self.store.beat(self.name, self.attempt)


FATES = st.lists(st.sampled_from(["well", "well", "slow", "lost", "lapse", "hang", "die"]), max_size=6)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_dies_hangs_or_is_lost_every_trial_gets_the_right_rows_within_the_budget(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6), label="rows of each block")
    layout = layout_of(*sizes)
    largest = max(layout.nbytes(block, tuple(WIDTHS)) for block in range(len(sizes)))
    budget = data.draw(st.integers(largest, total_bytes(layout)), label="budget")
    trial = st.tuples(st.sampled_from(PLACES), st.integers(1, sum(sizes)), st.sampled_from([0, 0, 0.1, 30]), FATES)
    trials = data.draw(st.lists(trial, min_size=1, max_size=4), label="trials")
    faults = st.lists(st.sampled_from([None, die]), max_size=6)
    deaths = data.draw(st.lists(faults, min_size=1, max_size=2), label="deaths of producers")
    hangs = data.draw(st.sampled_from([None, 0, 1, 4]), label="call in which the first producer hangs")
    if hangs is not None:
        deaths[0] = [*deaths[0][:hangs], *[None] * (hangs - len(deaths[0])), hang]
    readers = {f"t{i}": ReaderSpec(site, rows, target=target) for i, ((site, target), rows, *_) in enumerate(trials)}
    producers = [Failing(layout, produce=its, ready=[die]) for its in deaths]

    async def work() -> Store:
        store = Store(layout, producers, readers, budget)
        lives = {name: Life(store, name, fates) for name, (*_, fates) in zip(readers, trials, strict=True)}
        starts = (after_s for *_, after_s, _ in trials)
        running = asyncio.gather(*(life.run(at) for life, at in zip(lives.values(), starts, strict=True)))
        given_up = time.monotonic() + 1500
        while not running.done():
            await asyncio.wait([running], timeout=1)
            for name, (attempt, seconds) in store.report().silent.items():
                if seconds > HANG_S and attempt == lives[name].attempt:
                    lives[name].kill()
            assert time.monotonic() < given_up, f"deadlock: {store.report()}"
        await running
        for name, life in lives.items():
            assert life.read == set(range(layout.blocks_for(readers[name].rows)))
        return store

    store = play(work())
    counters = store.counters()
    assert counters.peak_bytes <= budget
    assert counters.rows_distinct == layout.starts[layout.blocks_for(max(r.rows for r in readers.values()))]
    assert store.report().silent == {}
    assert store.report().waits == ()
    if budget == total_bytes(layout):
        assert counters.forward_ratio == 1.0
