"""A report says who waits for which block, and why."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stores import (
    LAYOUT,
    Failing,
    Store,
    always,
    assert_rows,
    die,
    even,
    fast_and_silent,
    play,
    producers_of,
    readers_of,
    train,
    turns,
)

from gsae_ray.activations.store import Wait
from gsae_ray.activations.trial_positions import LAPSE_S


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
