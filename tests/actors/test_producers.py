"""Producers and the store as a launch starts them: law 1, and a task that is defined outside of the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import tasks
import torch
from faults import processes
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


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PreparedSweep:
    return prepare(Sweep.model_validate(SWEEP), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def producers(plan: PreparedSweep, local_ray: None) -> Iterator[list[ActorHandle[Any]]]:  # noqa: ARG001
    with running_producers(2, 0, 0, {}, producer_spec(plan), 120) as (two, _):
        yield two


def test_law_1_same_tokens_whatever_the_number_of_producers(
    plan: PreparedSweep, producers: list[ActorHandle[Any]]
) -> None:
    site = plan.trials[0].site
    rows = 40_000
    alone = RowStream(LocalBlockReader(Producer(producer_spec(plan)), site), plan.layout, site)
    expected = alone.read(rows)
    for count in (1, 2):
        readers = {"a": ReaderSpec(site, rows), "b": ReaderSpec(plan.trials[-1].site, rows)}
        store = start_store(plan.layout, 10**9, 60.0)
        store.begin.remote(producers[:count], readers, None)
        source = StoreBlockReader(StoreClient(store), "a", 1)
        source.statistics()
        stream = RowStream(source, plan.layout, site)
        assert torch.equal(torch.cat([stream.read(n) for n in (1, 127, 20_000, 19_872)]), expected)
        source.close(finished=True)
        ray.kill(store)


def test_a_task_runs_through_the_stores_actor_on_a_producers(
    plan: PreparedSweep, producers: list[ActorHandle[Any]]
) -> None:
    ray.cloudpickle.register_pickle_by_value(tasks)  # workers need not have this folder
    actor = start_store(plan.layout, 2**20, 60)
    ray.get(actor.begin.remote(producers[:1], {}, None))
    store = StoreClient(actor)
    assert store.run(CountLongRows(0, 5.0)) == {"long": long_rows(plan, 5.0), "before": 0}
    assert store.run(CountLongRows(0, 0.0)) == {"long": plan.layout.rows[0], "before": 1}
    with pytest.raises(NumericError, match="too large"):
        store.run(Overflow())
    (process,) = processes("StoreActor")
    libraries = {Path(mapped.path).name for mapped in process.memory_maps()}
    assert not any(name.startswith("libtorch") for name in libraries), "it would be over the store's budget"
    ray.kill(actor)
