"""What the store does about objects that were lost, its own death, and trials that fall silent."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import (
    TURN_S,
    WIDTHS,
    Failing,
    Store,
    always,
    assert_rows,
    die,
    even,
    go_on,
    hang,
    layout_of,
    play,
    producers_of,
    readers_of,
    total_bytes,
    train,
    turns,
)

from gsae_ray.activations.store import Wait
from gsae_ray.activations.trial_positions import LAPSE_S, ReaderSpec
from gsae_ray.errors import StaleAttemptError

LAYOUT = layout_of(5, 6, 7, 4, 5, 6)

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


# ---- silence --------------------------------------------------------------------------------------------------------


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


def test_a_trial_silent_for_more_than_the_lapse_stops_pacing_others() -> None:
    layout, block = even(12)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), 4 * block)
        fast = await fast_and_silent(store, 12)
        await asyncio.sleep(LAPSE_S - 200 * TURN_S)
        store.report()
        await turns(50)
        assert not fast.done()
        await asyncio.sleep(200 * TURN_S)
        assert "t1 is silent for 10 s; no trial waits for it any more" in store.report().events
        await asyncio.wait_for(fast, 1)
        assert store.counters().forward_ratio == 1.0

    play(work())


def test_an_attempt_that_is_silent_before_it_asks_for_anything_is_seen() -> None:
    async def work() -> None:
        store = Store(LAYOUT, producers_of(LAYOUT), readers_of(LAYOUT, 2))
        await store.begin_attempt("t1", 3)
        await asyncio.sleep(LAPSE_S + 1)
        assert {name: attempt for name, (attempt, _) in store.report().silent.items()} == {"t1": 3}
        await train(store, "t1", attempt=4)
        assert store.report().silent == {}

    play(work())


def test_a_trial_that_beats_paces_others_however_long_it_takes() -> None:
    layout, block = even(12)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), 4 * block)
        fast = await fast_and_silent(store, 12)
        for _ in range(20):
            await store.beat("t1", 1)
            await asyncio.sleep(LAPSE_S / 2)
            assert store.report().silent == {}
        assert not fast.done()

    play(work())


def test_the_block_that_a_silent_trial_holds_stays_pinned_and_counted() -> None:
    layout, block = even(12)
    producers = producers_of(layout)

    async def work() -> None:
        store = Store(layout, producers, readers_of(layout, 3), 2 * block)
        fast = await fast_and_silent(store, 12)
        await asyncio.sleep(LAPSE_S + 1)
        store.report()
        await asyncio.wait_for(fast, 1)
        assert 0 in store.record.held
        again = await store.lease("t1", 1, 0)
        assert_rows(store, "t1", 0, again)
        assert store.counters().peak_bytes <= 2 * block

    play(work())
    assert producers[0].produced[0] == 1
    assert producers[0].live_bytes[1] <= 2 * block


@pytest.mark.parametrize("blocks", [2, 3, 7])
def test_bytes_stay_within_the_budget_with_a_reader_that_never_wakes(blocks: int) -> None:
    layout, block = even(12)
    producers = producers_of(layout, 2)

    async def work() -> Store:
        store = Store(layout, producers, readers_of(layout, 3), blocks * block)
        await store.attach("t1", 1)
        pinned = await store.lease("t1", 1, 5)
        trials = [asyncio.ensure_future(beating(store, n, train(store, n, p))) for n, p in (("t0", 3), ("t2", 20))]
        for _ in range(30):
            await asyncio.sleep(1)
            store.report()
        await asyncio.wait_for(asyncio.gather(*trials), 1)
        assert_rows(store, "t1", 5, pinned)
        return store

    assert play(work()).counters().peak_bytes <= blocks * block
    assert producers[0].live_bytes[1] <= blocks * block


def test_a_trial_that_hangs_before_its_first_block_or_when_a_store_dies_is_silent_too() -> None:
    readers = readers_of(LAYOUT, 3)
    readers["t2"] = dataclasses.replace(readers["t2"], attempt=4)

    async def work() -> None:
        store = Store(LAYOUT, producers_of(LAYOUT), readers)
        await store.attach("t1", 1)
        await asyncio.sleep(LAPSE_S + 1)
        assert {name: attempt for name, (attempt, _) in store.report().silent.items()} == {"t1": 1, "t2": 4}
        await train(store, "t2", attempt=5)
        assert list(store.report().silent) == ["t1"]

    play(work())


def test_a_report_names_silent_trials_with_their_attempt_and_for_how_long() -> None:
    async def work() -> None:
        store = Store(LAYOUT, producers_of(LAYOUT), readers_of(LAYOUT, 3))
        for attempt in (1, 2, 3):
            await train(store, "t0", attempt=attempt, end=2)
        await store.attach("t1", 1)
        await store.release("t1", 1, finished=False)  # it is expected back, but not running
        await train(store, "t2")
        await asyncio.sleep(LAPSE_S - 1)
        assert store.report().silent == {}
        await asyncio.sleep(3)
        report = store.report()
        assert report.silent == {"t0": (3, report.silent["t0"][1])}
        assert report.silent["t0"][1] == pytest.approx(LAPSE_S + 2, abs=0.1)
        assert store.report().events == (), "it is told once"
        await asyncio.sleep(100)
        assert store.report().silent["t0"][1] == pytest.approx(LAPSE_S + 102, abs=0.1)

    play(work())


@pytest.mark.parametrize("budget_blocks", [2, 12])
def test_a_beat_brings_a_silent_trial_back_with_the_right_rows(budget_blocks: int) -> None:
    layout, block = even(12)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), budget_blocks * block)
        fast = await fast_and_silent(store, 8)
        await asyncio.sleep(LAPSE_S + 1)
        assert "t1" in store.report().silent
        await fast
        await store.abandon("t0", finished=False)
        await store.beat("t1", 1)
        look = store.report()
        assert look.silent == {}
        assert look.events == ("t1 is heard of again",)
        await go_on(store, "t1", 1, 0)
        assert store.counters().peak_bytes <= budget_blocks * block

    play(work())


def test_a_silent_trial_that_is_back_paces_others_again() -> None:
    layout, block = even(12)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), 4 * block)
        await store.attach("t1", 1)
        await store.lease("t1", 1, 0)
        await asyncio.sleep(LAPSE_S + 1)
        store.report()
        await store.beat("t1", 1)
        fast = asyncio.ensure_future(beating(store, "t0", train(store, "t0")))
        for _ in range(5):
            await asyncio.sleep(1)
            await store.beat("t1", 1)
            store.report()
        assert not fast.done()
        await go_on(store, "t1", 1, 1)
        await fast
        assert store.counters().forward_ratio == 1.0

    play(work())


@pytest.mark.parametrize("finished", [True, False])
def test_the_block_of_a_silent_trial_is_freed_when_it_is_abandoned(finished: bool) -> None:
    layout, block = even(6)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), block)
        fast = await fast_and_silent(store, 6)
        await asyncio.sleep(LAPSE_S + 1)
        assert store.report().silent
        await turns(50)
        assert not fast.done(), "there is room for one block"
        await store.abandon("t1", finished)
        await asyncio.wait_for(fast, 1)

    play(work())


@pytest.mark.parametrize("end", ["abandon", "release"])
def test_a_silent_trial_that_has_ended_is_silent_no_more(end: str) -> None:
    """Its process may be another trial's by now: it must not be killed for this one's silence."""

    async def work() -> None:
        store = Store(LAYOUT, producers_of(LAYOUT), readers_of(LAYOUT, 1))
        await train(store, "t0", end=2)
        await asyncio.sleep(LAPSE_S + 1)
        assert store.report().silent
        await (store.abandon("t0", False) if end == "abandon" else store.release("t0", 1, False))
        assert store.report().silent == {}
        await train(store, "t0", attempt=2)

    play(work())


def test_a_new_attempt_of_a_silent_trial_is_not_silent() -> None:
    layout, block = even(6)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 1), 2 * block)
        await train(store, "t0", end=2)
        await asyncio.sleep(LAPSE_S + 1)
        store.report()
        await store.attach("t0", 2)
        assert store.report().silent == {}
        await train(store, "t0", attempt=2)

    play(work())


def test_a_silent_trial_that_waits_keeps_nothing() -> None:
    layout, block = even(8)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 3), block)
        await store.attach("t1", 1)
        await store.attach("t0", 1)
        await store.lease("t0", 1, 7)
        waiting = asyncio.ensure_future(store.lease("t1", 1, 0))  # the slowest of all: the others would wait for it
        await turns(20)
        await asyncio.sleep(LAPSE_S - 1)
        await store.beat("t0", 1)
        await asyncio.sleep(2)
        assert set(store.report().silent) == {"t1"}
        await asyncio.wait_for(beating(store, "t2", train(store, "t2", start=7)), 1)
        assert_rows(store, "t0", 7, await store.lease("t0", 1, 7))
        await store.release("t0", 1, finished=True)
        await turns(50)
        assert not waiting.done()
        assert store.record.held == [7], "no room is made for a trial that is not there"
        await store.beat("t1", 1)
        store.report()
        assert_rows(store, "t1", 0, await asyncio.wait_for(waiting, 1))

    play(work())


def test_a_silent_trial_that_waits_is_given_what_is_made_for_others_and_holds_it_then() -> None:
    layout, block = even(8)
    producers = producers_of(layout)

    async def work() -> None:
        store = Store(layout, producers, readers_of(layout, 4), 2 * block)
        for name in ("t0", "t1", "t2"):
            await store.attach(name, 1)
        await store.lease("t0", 1, 7)
        await store.lease("t2", 1, 6)
        waiting = asyncio.ensure_future(store.lease("t1", 1, 0))
        await asyncio.sleep(LAPSE_S + 1)
        assert "t1" in store.report().silent
        for name in ("t0", "t2"):
            await store.release(name, 1, finished=True)
        await asyncio.wait_for(beating(store, "t3", train(store, "t3")), 1)
        assert_rows(store, "t1", 0, await asyncio.wait_for(waiting, 0.1))
        assert 0 in store.record.held
        assert store.counters().peak_bytes <= 2 * block

    play(work())


# ---- who waits for what ---------------------------------------------------------------------------------------------


async def waits_of(store: Store) -> tuple[Wait, ...]:
    await turns(3)
    return store.report().waits


def test_a_report_says_how_many_rows_of_a_block_in_production_are_made() -> None:
    async def work() -> None:
        store = Store(LAYOUT, producers_of(LAYOUT, slowness=50), readers_of(LAYOUT, 2))
        trials = [asyncio.ensure_future(train(store, name)) for name in ("t1", "t0")]
        for made in (0, 2, 4):
            await store.made(0, made)
            reason = f"{made} of its 5 rows are made"
            assert await waits_of(store) == (Wait("t0", 0, reason), Wait("t1", 0, reason))
        await store.made(3, 4)  # of a block that is not in production any more
        await asyncio.gather(*trials)
        assert await waits_of(store) == ()

    play(work())


def test_a_report_says_that_no_producer_is_alive() -> None:
    async def work() -> None:
        store = Store(LAYOUT, [Failing(LAYOUT, produce=[die], ready=[die] * 3)], readers_of(LAYOUT, 1))
        trial = asyncio.ensure_future(train(store, "t0"))
        await turns(10)
        assert await waits_of(store) == (Wait("t0", 0, "no producer is alive"),)
        await trial

    play(work())


@pytest.mark.parametrize("others", [[], [Failing(LAYOUT, produce=[die], ready=always(die))]])
def test_a_report_says_that_all_producers_are_busy(others: list[Failing]) -> None:
    async def work() -> None:
        store = Store(LAYOUT, [*others, *producers_of(LAYOUT, slowness=50)], readers_of(LAYOUT, 1))
        evaluation: asyncio.Future[Any] = asyncio.ensure_future(store.evaluate("left", "", ""))
        if others:
            evaluation = asyncio.gather(evaluation, store.evaluate("left", "", ""))
            asyncio.ensure_future(store.attach("t0", 1))
        else:
            asyncio.ensure_future(store.attach("t0", 1))
        await turns(10)
        assert await waits_of(store) == (Wait("t0", 0, "all producers are busy"),)
        await evaluation

    play(work())


def test_a_report_says_that_a_fast_trial_waits_for_the_slowest() -> None:
    layout, block = even(12)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 3), 4 * block)
        await train(store, "t1", end=2)  # holds block 1
        await train(store, "t2", end=3)
        fast = asyncio.ensure_future(train(store, "t0"))
        await turns(100)
        assert await waits_of(store) == (Wait("t0", 5, "there is no room before t1 has read block 1"),)
        fast.cancel()

    play(work())


def test_a_report_says_that_a_late_trial_waits_for_the_one_whose_block_takes_the_room() -> None:
    layout, block = even(6)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 3), block)
        for name in store.specs:
            await store.attach(name, 1)
        await train(store, "t0", end=5)  # holds block 4
        late = [asyncio.ensure_future(store.lease(name, 1, 0)) for name in ("t1", "t2")]
        reason = "there is no room before t0 has read block 4"
        assert await waits_of(store) == (Wait("t1", 0, reason), Wait("t2", 0, reason))
        await store.release("t0", 1, finished=True)
        await asyncio.gather(*late)

    play(work())


def test_a_report_says_that_a_trial_waits_for_a_silent_one_whose_block_takes_the_room() -> None:
    layout, block = even(6)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), block)
        await fast_and_silent(store, 6)
        await asyncio.sleep(LAPSE_S + 1)
        assert await waits_of(store) == (Wait("t0", 1, "there is no room before t1 has read block 0"),)

    play(work())


def test_a_report_says_that_production_for_nobody_takes_the_room() -> None:
    layout, block = even(6)

    async def work() -> None:
        store = Store(layout, producers_of(layout, 2, slowness=50), readers_of(layout, 2), block)
        await store.attach("t1", 1)
        await store.attach("t0", 1)
        asyncio.ensure_future(store.lease("t0", 1, 3))
        await turns(3)
        await store.abandon("t0", finished=False)
        late = asyncio.ensure_future(store.lease("t1", 1, 1))
        assert await waits_of(store) == (Wait("t1", 1, "there is no room before a block in production is made"),)
        assert_rows(store, "t1", 1, await late)

    play(work())


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
    trial = st.tuples(
        st.sampled_from(list(WIDTHS)), st.integers(1, sum(sizes)), st.sampled_from([0, 0, 0.1, 30]), FATES
    )
    trials = data.draw(st.lists(trial, min_size=1, max_size=4), label="trials")
    faults = st.lists(st.sampled_from([None, die]), max_size=6)
    deaths = data.draw(st.lists(faults, min_size=1, max_size=2), label="deaths of producers")
    hangs = data.draw(st.sampled_from([None, 0, 1, 4]), label="call in which the first producer hangs")
    if hangs is not None:
        deaths[0] = [*deaths[0][:hangs], *[None] * (hangs - len(deaths[0])), hang]
    readers = {f"t{i}": ReaderSpec(site, rows) for i, (site, rows, _, _) in enumerate(trials)}
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
