"""A store dies: the one that takes its place goes on from its record, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from stores import (
    ArrayProducer,
    Store,
    assert_rows,
    even,
    go_on,
    layout_of,
    play,
    producers_of,
    readers_of,
    train,
    turns,
)

from gsae_ray.activations.production_log import PRODUCTION_LOG, Counters, ProductionLog
from gsae_ray.errors import StaleAttemptError
from gsae_ray.files import JSONFile

LAYOUT = layout_of(5, 6, 7, 4, 5, 6)


def stored(record: ProductionLog) -> ProductionLog | None:
    """As it comes back from storage."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        PRODUCTION_LOG.write(path, record)
        return PRODUCTION_LOG.read(path)


def revived(store: Store, producers: Sequence[Any] | None = None) -> Store:
    """The store that takes a dead one's place: it has its record, by way of storage, and no more."""
    record = stored(store.report().record)
    producers = producers or producers_of(store.layout)
    return Store(store.layout, producers, store.specs, store.budget_bytes, record=record)


def test_a_record_survives_json() -> None:
    record = ProductionLog({0: 2, 11: 1}, {11: 3}, [0, 11], peak_bytes=7, evaluations=4, told=["left"])
    read = stored(record)
    assert read == record
    assert read is not None
    assert Counters.of(read, layout_of(*[2] * 12)) == Counters(6, 4, 6, 7, 4)
    assert stored(ProductionLog()) == ProductionLog()


def test_a_record_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """It named sites in place of lines that the user was told."""
    path = tmp_path / "record.json"
    PRODUCTION_LOG.write(path, ProductionLog({0: 1}, held=[0], evaluations=2))
    found = json.loads(path.read_text())
    del found["told"], found["sha256"]
    older = {**found, "sinks_told": ["blocks.1.hook_resid_post"]}
    JSONFile(dict[str, Any], "", sealed=True).write(path, older)
    assert PRODUCTION_LOG.read(path) == ProductionLog({0: 1}, held=[0], evaluations=2)


def test_a_record_is_a_copy_that_the_store_changes_no_more() -> None:
    async def work() -> None:
        given = ProductionLog(held=[0])
        store = Store(LAYOUT, producers_of(LAYOUT), readers_of(LAYOUT, 1), record=given)
        before = store.report().record
        await train(store, "t0")
        assert before == given == ProductionLog(held=[0])

    play(work())


def test_a_store_goes_on_from_the_record_of_a_dead_one_with_its_counters() -> None:
    first = producers_of(LAYOUT)
    second = producers_of(LAYOUT)

    async def work() -> Store:
        store = Store(LAYOUT, first, readers_of(LAYOUT, 2))
        await train(store, "t0", end=4)
        await train(store, "t1", end=2)
        await store.evaluate("left", "", "")
        await turns(20)
        peak = store.record.peak_bytes
        store = revived(store, second)
        assert store.record.peak_bytes == peak
        await asyncio.gather(go_on(store, "t0", 1, 4), go_on(store, "t1", 1, 2))
        await store.evaluate("left", "", "")
        return store

    store = play(work())
    assert first[0].produced == dict.fromkeys(range(5), 1)
    assert second[0].produced == dict.fromkeys(range(2, 6), 1)
    assert store.record.produced == dict.fromkeys(range(6), 1)
    assert store.record.repeated == dict.fromkeys(range(2, 5), 1), "what was held is made again because of the fault"
    assert store.counters().forward_ratio == 1.0
    assert store.counters().evaluations == 2


def test_what_was_not_held_when_the_store_died_counts_in_the_ratio() -> None:
    layout, block = even(6)

    async def work() -> Store:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), block)
        await train(store, "t0")  # holds the last block only
        store = revived(store)
        await go_on(store, "t1", 1, 0)
        return store

    store = play(work())
    assert store.record.produced == {**dict.fromkeys(range(5), 2), 5: 1}
    assert store.record.repeated == {5: 1}


def test_a_store_that_dies_again_and_again_keeps_count() -> None:
    async def work() -> Store:
        store = Store(LAYOUT, producers_of(LAYOUT), readers_of(LAYOUT, 1))
        for start in range(6):
            assert_rows(store, "t0", start, await store.lease("t0", 1, start))
            await turns(20)  # the next one too
            store = revived(store)
        return store

    store = play(work())
    assert store.record.produced == dict.fromkeys(range(6), 1)
    assert store.record.repeated == dict.fromkeys(range(1, 6), 1)
    assert store.record.held == list(range(6))


FIRST_CALLS: dict[str, Callable[[Store], Coroutine[Any, Any, Any]]] = {
    "lease": lambda store: store.lease("t0", 3, 1),
    "attach": lambda store: store.attach("t0", 3),
    "lost": lambda store: store.lost("t0", 3),
    "beat": lambda store: store.beat("t0", 3),
    "release": lambda store: store.release("t0", 3, False),
}


@pytest.mark.parametrize("call", FIRST_CALLS)
def test_after_a_stores_death_attempts_are_known_from_their_first_call_of_any_kind(call: str) -> None:
    async def work() -> None:
        store = Store(LAYOUT, producers_of(LAYOUT), readers_of(LAYOUT, 1), record=ProductionLog(held=[0, 1]))
        await FIRST_CALLS[call](store)
        for ask in (store.lease("t0", 2, 0), store.attach("t0", 2), store.lost("t0", 2), store.beat("t0", 2)):
            with pytest.raises(StaleAttemptError):
                await ask
        await go_on(store, "t0", 3, 1)

    play(work())


def test_a_trial_that_finishes_just_after_the_stores_death_has_finished() -> None:
    sites: dict[int, tuple[str, ...]] = {}

    class Watched(ArrayProducer):
        async def produce(self, block: int, at: Sequence[str]) -> Any:
            sites[block] = tuple(at)
            return await super().produce(block, at)

    async def work() -> None:
        store = revived(Store(LAYOUT, [], readers_of(LAYOUT, 2)), [Watched(LAYOUT)])
        await store.release("t0", 4, finished=True)
        await train(store, "t1")

    play(work())
    assert sites == dict.fromkeys(range(6), ("right",)), "no block is made for t0 any more"


def test_a_newer_attempt_that_calls_first_after_the_stores_death_is_not_disturbed_by_the_older_ones_attach() -> None:
    layout, block = even(4)

    async def work() -> None:
        store = Store(layout, producers_of(layout), readers_of(layout, 2), block)
        older = asyncio.ensure_future(store.attach("t0", 1))
        while store.record.produced.get(0) is None:
            await turns(1)
        chunks = await store.lease("t0", 2, 0)  # in the turn in which block 0 was made
        await asyncio.gather(older, return_exceptions=True)
        other = asyncio.ensure_future(store.lease("t1", 1, 2))
        await turns(50)
        assert not other.done(), "there is room for one block, and it is in use"
        assert_rows(store, "t0", 0, chunks)

    play(work())
