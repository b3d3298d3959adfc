"""Another kind of work on a producer: a class of `tasks`, which neither the store nor the producer knows."""

from __future__ import annotations

from typing import Any

import pytest
from producers import small_plan
from stores import Store, play
from tasks import CountLongRows, Overflow, long_rows

from gsae_ray.activations.producer import Producer
from gsae_ray.activations.production_log import EVALUATE
from gsae_ray.driver.prepare import PreparedSweep, producer_spec
from gsae_ray.errors import NumericError
from gsae_ray.evaluation.task import Evaluate


class PlainClient:
    """A producer in this process, as the store calls it."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.store: Store

    async def run(self, task: Any) -> Any:
        said: list[str] = []
        answer = self.producer.run(task, said.append)
        for line in said:
            await self.store.say(line)
        return answer


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PreparedSweep:
    return small_plan(tmp_path_factory.mktemp("task"))


def test_a_task_defined_outside_of_the_package_runs_through_store_pool_and_producer(plan: PreparedSweep) -> None:
    client = PlainClient(Producer(producer_spec(plan)))

    async def work() -> list[Any]:
        store = client.store = Store(plan.layout, [client], {}, budget=0)
        answers = [await store.run("count", CountLongRows(0, norm)) for norm in (0.0, 5.0)]
        with pytest.raises(NumericError, match="^too large$"):
            await store.run("overflow", Overflow())
        assert store.record.evaluations == 0, "another kind of task is no evaluation"
        assert store.report().events == ("rows of block 0 are counted",), "what both have said is told once"
        again = client.store = Store(plan.layout, [client], {}, budget=0, record=store.record)
        await again.run("count", CountLongRows(0, 0.0))
        assert again.report().events == (), "a store that takes a dead one's place does not tell it again"
        return answers

    everything, some = play(work())
    assert everything == {"long": plan.layout.rows[0], "before": 0}
    assert some == {"long": long_rows(plan, 5.0), "before": 1}


def test_evaluations_are_counted_by_their_name() -> None:
    assert Evaluate.name == EVALUATE
