"""The store's promises, kept on one event loop: producers and trials are coroutines, and time is turns of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import (
    PLACES,
    WIDTHS,
    ArrayProducer,
    Store,
    layout_of,
    play,
    producers_of,
    readers_of,
    rows_of,
    total_bytes,
    train,
    turns,
)

from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.errors import StaleAttemptError

# ---- one forward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_every_block_is_produced_once_for_all_trials_and_sites_late_ones_too(count: int) -> None:
    layout = layout_of(10, 7, 9, 4, 8)
    readers = readers_of(layout, 6) | {"short": ReaderSpec("left", 12)}
    producers = producers_of(layout, count, slowness=3)

    async def work() -> Store:
        store = Store(layout, producers, readers)
        await asyncio.gather(*(train(store, name, i) for i, name in enumerate(["t0", "t1", "t2", "short"])))
        held = len(store.record.held)
        await asyncio.gather(*(train(store, name) for name in ["t3", "t4", "t5"]))
        assert held == len(layout.rows)
        return store

    counters = play(work()).counters()
    assert producers[0].produced == dict.fromkeys(range(5), 1)
    assert counters.forward_ratio == 1.0
    assert counters.rows_produced == counters.rows_distinct == 38
    assert counters.peak_bytes == total_bytes(layout) == producers[0].live_bytes[1]


def test_the_first_block_can_be_made_before_trials_ask_for_it() -> None:
    layout = layout_of(5, 5)
    readers = readers_of(layout, 2)

    async def work(readers: dict[str, ReaderSpec]) -> Store:
        store = Store(layout, producers_of(layout, 2), readers)
        store.produce_first()
        await turns(100)
        assert store.record.produced == ({0: 1} if readers else {})
        await asyncio.gather(*(train(store, name) for name in readers))
        return store

    assert play(work(readers)).counters().forward_ratio == 1.0
    play(work({}))


def test_all_producers_work_at_the_same_time() -> None:
    layout = layout_of(*[4] * 12)
    busy: list[int] = [0, 0]

    class Watched(ArrayProducer):
        async def produce(self, block: int, sites: Sequence[str]) -> Any:
            busy[0] += 1
            busy[1] = max(busy)
            result = await super().produce(block, sites)
            busy[0] -= 1
            return result

    readers = readers_of(layout, 4)
    store = Store(layout, [Watched(layout, 20) for _ in range(3)], readers)

    async def work() -> None:
        await asyncio.gather(*(train(store, name, 10 * i, start=2 * i) for i, name in enumerate(readers)))

    play(work())
    assert busy[1] == 3
    assert store.counters().forward_ratio == 1.0


def test_a_block_is_made_only_at_the_sites_that_a_trial_reaches_there() -> None:
    layout = layout_of(8, 8, 8)
    sites: dict[int, tuple[str, ...]] = {}

    class Watched(ArrayProducer):
        async def produce(self, block: int, at: Sequence[str]) -> Any:
            sites[block] = tuple(at)
            return await super().produce(block, at)

    readers = {"long": ReaderSpec("left", 17), "short": ReaderSpec("right", 16)}

    async def work() -> None:
        store = Store(layout, [Watched(layout)], readers)
        await asyncio.gather(*(train(store, name) for name in readers))

    play(work())
    assert sites == {0: ("left", "right"), 1: ("left", "right"), 2: ("left",)}


def test_a_trial_with_a_target_gets_the_chunks_of_both_sites_from_one_forward() -> None:
    layout = layout_of(6, 5, 4)
    producers = producers_of(layout)
    readers = {"transcoder": ReaderSpec("right", 15, target="left"), "sae": ReaderSpec("left", 9)}

    async def work() -> Store:
        store = Store(layout, producers, readers)
        await asyncio.gather(*(train(store, name) for name in readers))
        return store

    store = play(work())  # `train` checks rows and statistics of both
    assert dict(producers[0].produced) == {0: 1, 1: 1, 2: 1}
    assert store.counters().peak_bytes == total_bytes(layout), "the last block is made at both sites too"


def test_statistics_come_from_block_0_wherever_an_attempt_starts() -> None:
    layout = layout_of(6, 5, 4)
    producers = producers_of(layout)

    async def work() -> Store:
        store = Store(layout, producers, readers_of(layout, 2))
        x_Rn = rows_of(layout, 0, "right")
        statistics = (await store.attach("t1", 1))["right"]
        np.testing.assert_array_equal(statistics.mean, x_Rn.mean(0))
        assert statistics.mean_square_norm == pytest.approx((x_Rn**2).sum(1).mean())
        await train(store, "t0", start=2)  # a resumed trial: block 0 for the statistics only, `train` checks them
        await train(store, "t1", start=1, attempt=2)
        return store

    assert play(work()).counters().forward_ratio == 1.0
    assert producers[0].produced[0] == 1


# ---- bounded --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
def test_bytes_held_and_in_production_stay_within_the_budget_with_a_fast_and_a_slow_trial(blocks: int) -> None:
    layout = layout_of(*[6] * 12)
    budget = blocks * layout.nbytes(0, tuple(WIDTHS))
    producers = producers_of(layout, 2)

    async def work() -> Store:
        store = Store(layout, producers, readers_of(layout, 2), budget)
        await asyncio.gather(train(store, "t0", 3), train(store, "t1", 30))
        return store

    assert play(work()).counters().peak_bytes <= budget
    assert producers[0].live_bytes[1] <= budget, "bytes that are really alive, as the producers count them"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_sweep_within_any_budget_of_a_block_or_more_finishes_with_the_right_rows(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=7), label="rows of each block")
    layout = layout_of(*sizes)
    largest = max(layout.nbytes(block, tuple(WIDTHS)) for block in range(len(sizes)))
    budget = data.draw(st.integers(largest, total_bytes(layout)), label="budget")
    trial = st.tuples(
        st.sampled_from(PLACES),
        st.integers(1, sum(sizes)),  # rows
        st.sampled_from([0, 1, 3, 30]),  # turns a block
        st.sampled_from([0, 0, 5, 60]),  # turns until it starts
    )
    trials = data.draw(st.lists(trial, min_size=1, max_size=6), label="trials")
    producers = producers_of(layout, data.draw(st.integers(1, 3), label="producers"), data.draw(st.integers(0, 4)))
    readers = {f"t{i}": ReaderSpec(site, rows, target=target) for i, ((site, target), rows, *_) in enumerate(trials)}

    async def late(store: Store, name: str, slowness: int, after: int) -> None:
        await turns(after)
        await train(store, name, slowness)

    async def work() -> Store:
        store = Store(layout, producers, readers, budget)
        await asyncio.gather(*(late(store, f"t{i}", *pace) for i, (_, _, *pace) in enumerate(trials)))
        return store

    counters = play(work()).counters()
    assert counters.peak_bytes <= budget
    assert producers[0].live_bytes[1] <= budget
    assert counters.rows_distinct == layout.starts[layout.blocks_for(max(r.rows for r in readers.values()))]
    if budget == total_bytes(layout):
        assert counters.forward_ratio == 1.0


@pytest.mark.parametrize("blocks", [5, 10, 15])
def test_over_budget_two_waves_cost_one_minus_budget_over_total_more(blocks: int) -> None:
    layout = layout_of(*[4] * 20)
    producers = producers_of(layout)
    readers = readers_of(layout, 8)

    async def work() -> Store:
        store = Store(layout, producers, readers, blocks * layout.nbytes(0, tuple(WIDTHS)))
        for wave in (list(readers)[:4], list(readers)[4:]):
            await asyncio.gather(*(train(store, name) for name in wave))
        return store

    # A block in use and the one ahead take room from the prefix: 2 of 20.
    ratio = play(work()).counters().forward_ratio
    assert 1 + (1 - blocks / 20) - 1e-9 <= ratio <= 1 + (1 - blocks / 20) + 2 / 20 + 1e-9


def test_over_budget_a_prefix_stays_and_the_second_wave_costs_what_did_not_fit() -> None:
    layout = layout_of(*[5] * 10)
    producers = producers_of(layout)

    async def work() -> None:
        store = Store(layout, producers, readers_of(layout, 2), 6 * layout.nbytes(0, tuple(WIDTHS)))
        await train(store, "t0")
        await train(store, "t1")

    play(work())
    times = [producers[0].produced[block] for block in range(10)]
    assert times[:4] == [1, 1, 1, 1]
    assert sum(times) == 10 + (10 - 6)


@pytest.mark.parametrize("blocks", [3, 4, 5, 10, 15])
def test_over_budget_a_fast_trial_waits_so_that_one_wave_needs_one_forward(blocks: int) -> None:
    layout = layout_of(*[5] * 20)

    async def work() -> Store:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), blocks * layout.nbytes(0, tuple(WIDTHS)))
        await asyncio.gather(train(store, "t0", slowness=2), train(store, "t1", slowness=20))
        return store

    assert play(work()).counters().forward_ratio == 1.0


def test_a_late_trial_whose_blocks_do_not_fit_waits_and_then_goes_on() -> None:
    layout = layout_of(*[4] * 6)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), layout.nbytes(0, tuple(WIDTHS)))
        await store.attach("t1", 1)
        await train(store, "t0", end=5)  # holds block 4
        late = asyncio.ensure_future(train(store, "t1"))
        await turns(200)
        assert not late.done()
        assert len(store.record.held) == 1
        await store.release("t0", 1, finished=False)
        await late
        await train(store, "t0", attempt=2, start=4)

    play(work())


def test_a_trial_that_stops_for_now_lets_its_block_go_and_comes_back() -> None:
    layout = layout_of(*[4] * 4)
    producers = producers_of(layout)

    async def work() -> None:
        store = Store(layout, producers, readers_of(layout, 2), layout.nbytes(0, tuple(WIDTHS)))
        await train(store, "t0", end=3)
        await store.release("t0", 1, finished=False)
        await train(store, "t1")
        await train(store, "t0", attempt=2, start=2)

    play(work())


# ---- attempts -------------------------------------------------------------------------------------------------------


def test_a_stale_attempt_is_refused() -> None:
    layout = layout_of(*[4] * 4)

    async def work() -> None:
        store = Store(layout, producers_of(layout, slowness=3), readers_of(layout, 1))
        await store.attach("t0", 1)
        waiting = asyncio.ensure_future(store.lease("t0", 1, 3))
        await turns(1)
        await store.attach("t0", 2)
        with pytest.raises(StaleAttemptError, match="attempt 1 while attempt 2"):
            await store.lease("t0", 1, 0)
        with pytest.raises(StaleAttemptError, match="attempt 1 after attempt 2"):
            await store.attach("t0", 1)
        await train(store, "t0", attempt=2)
        with pytest.raises(StaleAttemptError):
            await waiting

    play(work())


def test_a_stale_attempt_cannot_let_go_what_the_newer_one_reads() -> None:
    layout = layout_of(*[4] * 4)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), layout.nbytes(0, tuple(WIDTHS)))
        await store.attach("t1", 1)
        await store.attach("t0", 1)
        await store.attach("t0", 2)
        await store.lease("t0", 2, 1)
        await store.release("t0", 1, finished=True)
        other = asyncio.ensure_future(store.lease("t1", 1, 0))
        await turns(100)
        assert not other.done(), "there is room for one block, and it is in use"
        await store.release("t0", 2, finished=False)
        await other

    play(work())


def test_an_attempt_that_was_killed_at_any_block_is_followed_by_one_that_gets_the_right_rows() -> None:
    layout = layout_of(*[4] * 5)
    producers = producers_of(layout, 2, slowness=2)

    async def work() -> Store:
        store = Store(layout, producers, readers_of(layout, 2), 2 * layout.nbytes(0, tuple(WIDTHS)))
        other = asyncio.ensure_future(train(store, "t1", 20))
        for attempt in range(1, 6):
            killed = asyncio.ensure_future(train(store, "t0", 5, attempt))
            await turns(7 * attempt)
            killed.cancel()
        await train(store, "t0", 5, attempt=6)
        await other
        return store

    assert play(work()).counters().peak_bytes <= 2 * layout.nbytes(0, tuple(WIDTHS))
