"""What the store does with producers: those that die, hang or raise are asked again, and they evaluate too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from stores import (
    EVALUATION,
    ArrayProducer,
    Failing,
    Store,
    always,
    die,
    hang,
    layout_of,
    out_of_memory,
    play,
    producers_of,
    readers_of,
    train,
    turns,
)

from gsae_ray.errors import NumericError, ProductionError
from gsae_ray.evaluation.metrics import Evaluation

# ---- faults ---------------------------------------------------------------------------------------------------------


def test_a_producer_that_died_is_asked_again_and_the_rows_are_right() -> None:
    layout = layout_of(5, 6, 7)
    flaky = Failing(layout, produce=[None, die, die])

    async def work() -> Store:
        store = Store(layout, [flaky], readers_of(layout, 2))
        await asyncio.gather(train(store, "t0"), train(store, "t1"))
        return store

    assert play(work()).counters().forward_ratio == 1.0, "a production that was lost is not a completed one"
    assert flaky.calls["produce"] == 5


def test_an_evaluation_whose_producer_died_is_asked_again() -> None:
    layout = layout_of(5)
    flaky = Failing(layout, run=[die])
    assert play(Store(layout, [flaky], {}).evaluate("left", "cfg", "weights")) == EVALUATION
    assert flaky.calls["run"] == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (hang, r"producers\.timeout_s = 0\.3 s .*no answer"),
        (die, r"producers\.timeout_s = 0\.3 s .*its process died"),
        (out_of_memory, "produce failed on a producer: CUDA out of memory"),
    ],
)
def test_a_producer_that_hangs_dies_or_raises_is_one_clear_error_for_every_waiting_trial(
    fault: Any, reason: str
) -> None:
    layout = layout_of(5, 6, 7)
    failing = Failing(layout, produce=always(fault, after=1))

    async def work() -> list[Any]:
        store = Store(layout, [failing], readers_of(layout, 4), timeout_s=0.3)
        return await asyncio.gather(*(train(store, f"t{i}") for i in range(4)), return_exceptions=True)

    errors = play(work())
    assert [type(error) for error in errors] == [ProductionError] * 4
    for error in errors:
        with pytest.raises(ProductionError, match=reason):
            raise error
        assert "\n" not in str(error)


def test_after_an_error_blocks_that_are_held_are_served_and_the_producer_is_not_called_for_ever() -> None:
    layout = layout_of(5, 6, 7)
    failing = Failing(layout, produce=always(out_of_memory, after=1))

    async def work() -> int:
        store = Store(layout, [failing], readers_of(layout, 2))
        for name in ("t0", "t1"):
            with pytest.raises(ProductionError):
                await train(store, name)
            assert await store.lease(name, 1, 0)
        calls = failing.calls["produce"]
        await turns(500)
        return failing.calls["produce"] - calls

    assert play(work()) == 0


@pytest.mark.parametrize("fault", [hang, out_of_memory])
def test_an_evaluation_that_fails_is_its_own_callers_error_and_trials_go_on(fault: Any) -> None:
    layout = layout_of(5, 6, 7)

    async def work() -> None:
        store = Store(layout, [Failing(layout, run=always(fault))], readers_of(layout, 2), timeout_s=0.3)
        evaluation = asyncio.ensure_future(store.evaluate("left", "cfg", "weights"))
        await asyncio.gather(train(store, "t0"), train(store, "t1"))
        with pytest.raises(ProductionError, match=r"evaluate"):
            await evaluation

    play(work())


def test_numbers_that_are_not_finite_are_told_from_a_producer_that_fails() -> None:
    layout = layout_of(5, 6, 7)

    async def overflow() -> None:
        raise NumericError("activations at left are not finite")

    store = Store(layout, [Failing(layout, run=[overflow])], readers_of(layout, 1))
    with pytest.raises(NumericError, match=r"^activations at left are not finite$"):
        play(store.evaluate("left", "cfg", "weights"))


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluations_are_done_while_production_goes_on_and_after() -> None:
    layout = layout_of(*[4] * 30)
    producers = producers_of(layout, slowness=5)

    async def work() -> None:
        store = Store(layout, producers, readers_of(layout, 2))
        trials = asyncio.gather(train(store, "t0", 10), train(store, "t1", 12))
        await turns(30)
        requests = [store.evaluate("left", f"cfg {i}", f"weights {i}") for i in range(3)]
        assert await asyncio.gather(*requests) == [EVALUATION] * 3
        assert not trials.done()
        assert len(store.record.held) < 30
        await trials
        assert await store.evaluate("right", "cfg 3", "weights 3", 16) == EVALUATION
        assert store.counters().evaluations == 4
        assert store.counters().forward_ratio == 1.0

    play(work())
    expected: list[Any] = [("left", f"cfg {i}", f"weights {i}") for i in range(3)] + [
        ("right", "cfg 3", "weights 3", 16)
    ]
    assert producers[0].tasks == expected


def test_a_block_that_a_trial_waits_for_goes_before_evaluations_and_they_before_blocks_ahead() -> None:
    layout = layout_of(*[4] * 3)
    order: list[str] = []

    class Watched(ArrayProducer):
        async def produce(self, block: int, sites: Sequence[str]) -> Any:
            order.append(f"block {block}")
            return await super().produce(block, sites)

        async def run(self, task: Any) -> Evaluation:
            order.append("evaluation")
            return await super().run(task)

    async def work() -> None:
        store = Store(layout, [Watched(layout, 5)], readers_of(layout, 1))
        first = asyncio.ensure_future(store.evaluate("left", "", ""))  # keeps the producer busy
        await turns(2)
        second = asyncio.ensure_future(store.evaluate("left", "", ""))
        await asyncio.gather(first, second, train(store, "t0", 50))

    play(work())
    assert order == ["evaluation", "block 0", "evaluation", "block 1", "block 2"]
