"""Producers that die, hang, go for good and come back, as the store's callers see it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from stores import (
    EVALUATION,
    TIMEOUT_S,
    ArrayProducer,
    Failing,
    Fault,
    Store,
    always,
    die,
    hang,
    layout_of,
    out_of_memory,
    play,
    readers_of,
    train,
    turns,
)

from gsae_ray.errors import ProductionError

LAYOUT = layout_of(5, 6, 7, 4, 5, 6)


async def unreachable() -> None:
    raise RuntimeError("its node is gone\nand a long traceback")


async def die_slowly() -> None:
    await turns(20)
    await die()


def gone(after: int = 0) -> Failing:
    """Dies in the call to produce after so many, and never comes up again."""
    return Failing(LAYOUT, produce=always(die, after), ready=always(unreachable))


async def all_trials(store: Store) -> list[Any]:
    return await asyncio.gather(*(train(store, name, 3) for name in store.specs), return_exceptions=True)


@pytest.mark.parametrize("fault", [die, hang])
def test_a_producer_that_is_gone_for_good_does_not_stop_the_sweep_while_another_is_healthy(fault: Fault) -> None:
    lost = Failing(LAYOUT, produce=always(fault), ready=always(unreachable), restart=always(unreachable))
    healthy = ArrayProducer(LAYOUT, slowness=5)

    async def work() -> None:
        store = Store(LAYOUT, [lost, healthy], readers_of(LAYOUT, 3))
        await asyncio.gather(train(store, "t0"), train(store, "t1"))
        await asyncio.sleep(10 * TIMEOUT_S)  # nobody asks for anything, but the pool looks after its own
        assert await store.evaluate("left", "cfg", "weights") == EVALUATION
        await train(store, "t2")
        assert store.counters().forward_ratio == 1.0

    play(work())
    assert lost.calls["produce"] == 1
    assert healthy.produced == dict.fromkeys(range(6), 1)


def test_a_producer_that_hangs_is_restarted_and_its_block_given_to_another() -> None:
    hanging, other = Failing(LAYOUT, produce=[hang]), ArrayProducer(LAYOUT)

    async def work() -> None:
        store = Store(LAYOUT, [hanging, other], readers_of(LAYOUT, 1))
        started = time.monotonic()
        await store.attach("t0", 1)
        assert TIMEOUT_S < time.monotonic() - started < TIMEOUT_S + 1
        assert (hanging.produced[0], other.produced[0]) == (0, 1)
        await train(store, "t0")

    play(work())
    assert hanging.calls["restart"] == 1


def test_a_producer_that_hangs_keeps_no_trial_from_what_the_others_make() -> None:
    async def work() -> None:
        store = Store(LAYOUT, [Failing(LAYOUT, produce=[None, hang]), ArrayProducer(LAYOUT)], readers_of(LAYOUT, 1))
        await store.attach("t0", 1)
        late = asyncio.ensure_future(store.lease("t0", 1, 3))  # on the one, which hangs
        await turns(10)
        started = time.monotonic()
        await train(store, "t0", attempt=2, end=3)
        assert time.monotonic() - started < 1
        with pytest.raises(RuntimeError, match="a newer call"):
            await late

    play(work())


def test_a_producer_that_died_is_not_restarted_it_comes_up_by_itself() -> None:
    producer = Failing(LAYOUT, produce=[None, die, die])

    async def work() -> None:
        await train(Store(LAYOUT, [producer], readers_of(LAYOUT, 1)), "t0")

    play(work())
    assert (producer.calls["restart"], producer.calls["ready"]) == (0, 2)


def test_a_process_that_hangs_while_it_comes_up_is_restarted() -> None:
    producer = Failing(LAYOUT, produce=[None, die], ready=[hang])

    async def work() -> None:
        store = Store(LAYOUT, [producer, ArrayProducer(LAYOUT)], readers_of(LAYOUT, 1))
        await train(store, "t0")
        assert producer.calls["restart"] == 0
        await asyncio.sleep(TIMEOUT_S + 1)
        assert producer.calls["restart"] == 1
        assert "producer 1 of 2 is back" in store.report().events[-1]

    play(work())


def test_a_process_that_comes_up_slowly_is_not_restarted_again() -> None:
    producer = Failing(LAYOUT, produce=[hang], ready=[unreachable] * 4)

    async def work() -> None:
        store = Store(LAYOUT, [producer, ArrayProducer(LAYOUT)], readers_of(LAYOUT, 1))
        await train(store, "t0")
        await asyncio.sleep(TIMEOUT_S)
        assert "producer 1 of 2 is back" in store.report().events[-1]

    play(work())
    assert (producer.calls["restart"], producer.calls["ready"]) == (1, 5)


def test_a_restart_that_fails_is_tried_again() -> None:
    producer = Failing(LAYOUT, produce=[hang], restart=[unreachable], ready=[hang])

    async def work() -> None:
        store = Store(LAYOUT, [producer, ArrayProducer(LAYOUT)], readers_of(LAYOUT, 1))
        await train(store, "t0")
        await asyncio.sleep(2 * TIMEOUT_S)
        assert "producer 1 of 2 is back" in store.report().events[-1]

    play(work())
    assert producer.calls["restart"] == 2


def test_all_producers_gone_for_too_long_is_one_clear_error_for_waiting_trials_and_all_evaluations() -> None:
    producers = [gone(after=1), gone(after=1)]

    async def work() -> tuple[Store, list[Any]]:
        store = Store(LAYOUT, producers, readers_of(LAYOUT, 4))
        trials = asyncio.ensure_future(all_trials(store))
        await turns(30)
        started = time.monotonic()
        waiting = asyncio.gather(*(store.evaluate("left", "", "") for _ in range(2)), return_exceptions=True)
        errors = [*await trials, *await waiting]
        assert TIMEOUT_S * 0.9 < time.monotonic() - started < 2 * TIMEOUT_S + 1
        for ask in (store.evaluate("left", "", ""), store.lease("t0", 1, 5)):
            with pytest.raises(ProductionError) as later:
                await asyncio.wait_for(ask, 0.1)
            errors.append(later.value)
        return store, errors

    store, errors = play(work())
    assert {type(error) for error in errors} == {ProductionError}
    (message,) = {str(error) for error in errors}
    assert "no producer was alive for producers.timeout_s = 20 s (its node is gone)" in message
    assert "--resume" in message
    assert "\n" not in message


def test_blocks_that_are_held_are_served_when_all_producers_are_gone() -> None:
    async def work() -> None:
        store = Store(LAYOUT, [gone(after=1)], readers_of(LAYOUT, 2))
        with pytest.raises(ProductionError):
            await train(store, "t0")
        await train(store, "t1", end=1)

    play(work())


def test_all_producers_gone_for_less_than_the_timeout_is_no_error() -> None:
    producers = [Failing(LAYOUT, produce=[None, die], ready=[unreachable] * 6) for _ in range(2)]

    async def work() -> None:
        store = Store(LAYOUT, producers, readers_of(LAYOUT, 2))
        started = time.monotonic()
        errors = await all_trials(store)
        assert errors == [None, None]
        assert 0.4 * TIMEOUT_S < time.monotonic() - started < TIMEOUT_S
        assert await store.evaluate("left", "", "") == EVALUATION
        assert store.counters().forward_ratio == 1.0

    play(work())


def test_the_timeout_counts_from_when_the_last_producer_went() -> None:
    last = Failing(LAYOUT, produce=always(hang, after=2), ready=always(unreachable))

    async def work() -> None:
        store = Store(LAYOUT, [gone(), last], readers_of(LAYOUT, 1))
        await store.attach("t0", 1)  # the first is gone for good now
        started = time.monotonic()
        with pytest.raises(ProductionError, match="no producer was alive"):
            await store.lease("t0", 1, 3)  # the other hangs for a while, and is gone then
        assert time.monotonic() - started > 2 * TIMEOUT_S

    play(work())


def test_a_producer_that_comes_back_is_used_again() -> None:
    flaky = Failing(LAYOUT, produce=[die], ready=[unreachable] * 3)
    busy: list[str] = []

    class Slow(ArrayProducer):
        async def produce(self, block: int, sites: Sequence[str]) -> Any:
            busy.append("slow")
            return await super().produce(block, sites)

    async def work() -> None:
        store = Store(LAYOUT, [flaky, Slow(LAYOUT, slowness=2000)], readers_of(LAYOUT, 2))
        assert await all_trials(store) == [None, None]
        assert store.counters().forward_ratio == 1.0
        back = [event for event in store.report().events if "producer 1 of 2 is back after" in event]
        assert len(back) == 1

    play(work())
    assert flaky.produced.total() + len(busy) == 6
    assert flaky.produced.total() > 1


@pytest.mark.parametrize("fault", [die, hang])
def test_an_evaluation_that_a_producer_did_not_survive_is_anothers_to_answer(fault: Fault) -> None:
    faulty, other = Failing(LAYOUT, run=always(fault), ready=always(unreachable)), ArrayProducer(LAYOUT)

    async def work() -> Any:
        store = Store(LAYOUT, [faulty, other], {})
        answer = await store.evaluate("left", "cfg", "weights", 8)
        assert store.record.evaluations == 1
        return answer

    assert play(work()) == EVALUATION
    assert other.tasks == [("left", "cfg", "weights", 8)]


def test_an_error_of_the_forward_pass_does_not_cost_its_producer() -> None:
    producer = Failing(LAYOUT, run=[out_of_memory])

    async def work() -> None:
        store = Store(LAYOUT, [producer], readers_of(LAYOUT, 1))
        with pytest.raises(ProductionError, match="evaluate failed on a producer: CUDA out of memory"):
            await store.evaluate("left", "", "")
        await train(store, "t0")
        assert store.report().events == ()

    play(work())


@pytest.mark.parametrize("abandoned", ["before it dies", "after it has died"])
def test_failures_of_a_block_long_ago_do_not_count_when_it_is_wanted_again(abandoned: str) -> None:
    layout = layout_of(5, 5)
    faults = [die] if abandoned == "after it has died" else [die_slowly]
    flaky = Failing(layout, produce=[*faults, die], ready=[unreachable] * 3)

    async def work() -> None:
        store = Store(layout, [flaky], readers_of(layout, 1))
        first = asyncio.ensure_future(store.attach("t0", 1))
        await turns(5)
        await store.abandon("t0", finished=False)  # nobody wants block 0 for now
        await asyncio.gather(first, return_exceptions=True)
        await asyncio.sleep(10 * TIMEOUT_S)
        await train(store, "t0", attempt=2)

    play(work())
    assert flaky.calls["produce"] == 4


def test_events_are_told_once_in_one_line_each() -> None:
    producers = [Failing(LAYOUT, produce=[die, hang]), Failing(LAYOUT, produce=[hang])]

    async def work() -> tuple[str, ...]:
        store = Store(LAYOUT, producers, readers_of(LAYOUT, 1))
        await train(store, "t0")
        await asyncio.sleep(2 * TIMEOUT_S)
        events = store.report().events
        assert store.report().events == ()
        return events

    events = play(work())
    gone = [event for event in events if "is gone" in event]
    assert sorted(gone) == [
        "producer 1 of 2 is gone (its process died); it is started again",
        "producer 1 of 2 is gone (no answer to produce in producers.timeout_s = 20 s); it is started again",
        "producer 2 of 2 is gone (no answer to produce in producers.timeout_s = 20 s); it is started again",
    ]
    assert len([event for event in events if "is back after" in event]) == 3
    assert len(events) == 6


def test_a_task_may_take_several_times_as_long_as_a_call() -> None:
    async def slowly() -> None:
        await asyncio.sleep(0.3)

    for times, starts in ((1, 2), (5, 1)):
        slow = Failing(LAYOUT, run=[slowly])

        async def work(slow: Failing = slow, times: int = times) -> None:
            store = Store(LAYOUT, [slow], {}, timeout_s=0.15)
            assert await store.run("tables", ("task",), times) == EVALUATION

        play(work())
        assert slow.calls["run"] == starts
