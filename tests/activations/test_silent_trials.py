"""Trials that fall silent: no other waits for them, and what they hold stays until they are abandoned or back."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from stores import (
    LAYOUT,
    TURN_S,
    Store,
    assert_rows,
    beating,
    even,
    fast_and_silent,
    go_on,
    play,
    producers_of,
    readers_of,
    train,
    turns,
)

from gsae_ray.activations.trial_positions import LAPSE_S


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
