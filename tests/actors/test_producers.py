"""Producers and the store as a launch starts them: law 1, and a task that is defined outside of the package."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import tasks
import torch
from faults import processes, wait_until
from golden import SWEEP
from ray.actor import ActorHandle
from tasks import CountLongRows, Overflow, long_rows

from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.actors.store_actor import StoreBlockReader, StoreClient
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.driver.start_actors import running_producers, start_store
from gsae_ray.errors import NumericError

pytestmark = pytest.mark.slow  # launches of the quick suite have a store and a producer, too


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PreparedSweep:
    return prepare(Sweep.model_validate(SWEEP), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def producers(plan: PreparedSweep, local_ray: None) -> Iterator[list[ActorHandle[Any]]]:  # noqa: ARG001
    with running_producers(2, 0, 0, {}, producer_spec(plan), 120) as (two, _):
        yield two


@contextlib.contextmanager
def stored(plan: PreparedSweep, budget: int, begin: Callable[[ActorHandle[Any]], Any]) -> Iterator[StoreClient]:
    """A store that has begun, for the length of the context."""
    actor = start_store(plan.layout, budget, 60)
    try:
        ray.get(begin(actor))
        yield StoreClient(actor)
    finally:
        ray.kill(actor)


def test_law_1_same_tokens_whatever_the_number_of_producers(
    plan: PreparedSweep, producers: list[ActorHandle[Any]]
) -> None:
    site = plan.trials[0].site
    rows = 20_000  # two blocks
    alone = RowStream(LocalBlockReader(Producer(producer_spec(plan)), site), plan.layout, site)
    expected = alone.read(rows)
    readers = {"a": ReaderSpec(site, rows), "b": ReaderSpec(plan.trials[-1].site, rows)}
    for count in (1, 2):
        with stored(plan, 10**9, lambda actor, n=count: actor.begin.remote(producers[:n], readers, None)) as store:  # type: ignore[misc]
            source = StoreBlockReader(store, "a", 1)
            source.statistics()
            stream = RowStream(source, plan.layout, site)
            assert torch.equal(torch.cat([stream.read(n) for n in (1, 127, 10_000, 9_872)]), expected)
            source.close(finished=True)


@pytest.fixture
def store(plan: PreparedSweep, producers: list[ActorHandle[Any]]) -> Iterator[StoreClient]:
    with stored(plan, 2**20, lambda actor: actor.begin.remote(producers[:1], {}, None)) as client:
        yield client


def test_a_task_runs_through_the_stores_actor_on_a_producers(plan: PreparedSweep, store: StoreClient) -> None:
    ray.cloudpickle.register_pickle_by_value(tasks)  # workers need not have this folder
    assert store.run(CountLongRows(0, 5.0)) == {"long": long_rows(plan, 5.0), "before": 0}
    assert store.run(CountLongRows(0, 0.0)) == {"long": plan.layout.rows[0], "before": 1}
    with pytest.raises(NumericError, match="too large"):
        store.run(Overflow())


@pytest.mark.usefixtures("store")
def test_the_stores_process_does_without_torch() -> None:
    """Though it has the handles of producers."""
    (process,) = wait_until(lambda: found if len(found := processes("StoreActor")) == 1 else None)
    libraries = {Path(mapped.path).name for mapped in process.memory_maps()}
    assert any(name.startswith("_raylet") for name in libraries)
    assert not any(name.startswith("libtorch") for name in libraries), "it would be over the store's budget"
