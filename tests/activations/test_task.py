"""Another kind of work on a producer: a class in this file, which neither the store nor the producer knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
from producers import small_plan
from stores import Store, play

from gsae_ray.activations.producer import Producer
from gsae_ray.activations.production_log import EVALUATE
from gsae_ray.actors.store_actor import StoreClient
from gsae_ray.driver.prepare import PreparedSweep, producer_spec
from gsae_ray.driver.start_actors import running_producers, start_store
from gsae_ray.errors import NumericError
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.language_model.source import ActivationSource

SITE = "blocks.1.hook_resid_post"


@dataclasses.dataclass(frozen=True)
class CountLongRows:
    """How many rows of a block are longer than `norm`, and how many tasks ran here before."""

    block: int
    norm: float

    name = "count"

    def run(self, source: ActivationSource, cache: dict[str, Any]) -> dict[str, int]:
        before = cache.get("counted", 0)
        cache["counted"] = before + 1
        norms = [batch.rows[SITE].norm(dim=1) for batch in source.block(self.block, [SITE])]
        return {"long": int((torch.cat(norms) > self.norm).sum()), "before": before}


@dataclasses.dataclass(frozen=True)
class Overflow:
    """A task that fails for good."""

    name = "overflow"

    def run(self, source: ActivationSource, cache: dict[str, Any]) -> None:
        raise NumericError("too large")


class PlainClient:
    """A producer in this process, as the store calls it."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer

    async def run(self, task: Any) -> Any:
        return self.producer.run(task)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PreparedSweep:
    return small_plan(tmp_path_factory.mktemp("task"))


def long_rows(plan: PreparedSweep, norm: float) -> int:
    """As the task, from the chunks."""
    _, chunks = Producer(producer_spec(plan)).produce(0, [SITE])
    return sum(int((torch.from_numpy(chunk).norm(dim=1) > norm).sum()) for chunk in chunks)


def test_a_task_defined_outside_of_the_package_runs_through_store_pool_and_producer(plan: PreparedSweep) -> None:
    client = PlainClient(Producer(producer_spec(plan)))

    async def work() -> list[Any]:
        store = Store(plan.layout, [client], {}, budget=0)
        answers = [await store.run("count", CountLongRows(0, norm)) for norm in (0.0, 5.0)]
        with pytest.raises(NumericError, match="^too large$"):
            await store.run("overflow", Overflow())
        assert store.record.evaluations == 0, "another kind of task is no evaluation"
        return answers

    everything, some = play(work())
    assert everything == {"long": plan.layout.rows[0], "before": 0}
    assert some == {"long": long_rows(plan, 5.0), "before": 1}


def test_evaluations_are_counted_by_their_name() -> None:
    assert Evaluate.name == EVALUATE


@pytest.fixture
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_task_runs_on_the_actors_of_a_launch(plan: PreparedSweep, local_ray: None) -> None:
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))  # the workers do not have this file
    spec = producer_spec(plan)
    with running_producers(1, 0, 0, {}, spec, 120) as (producers, _):
        actor = start_store(plan.layout, 2**20, 60)
        ray.get(actor.begin.remote(producers, {}, None))
        store = StoreClient(actor)
        assert store.run(CountLongRows(0, 5.0)) == {"long": long_rows(plan, 5.0), "before": 0}
        assert store.run(CountLongRows(0, 0.0)) == {"long": plan.layout.rows[0], "before": 1}
        with pytest.raises(NumericError, match="too large"):
            store.run(Overflow())
        ray.kill(actor)
