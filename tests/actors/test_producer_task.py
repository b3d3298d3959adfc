"""A task that is defined outside of the package runs on the actors of a launch."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import tasks
from faults import processes
from producers import small_plan
from tasks import CountLongRows, Overflow, long_rows

from gsae_ray.actors.store_actor import StoreClient
from gsae_ray.driver.prepare import producer_spec
from gsae_ray.driver.start_actors import running_producers, start_store
from gsae_ray.errors import NumericError


@pytest.mark.usefixtures("local_ray")
def test_a_task_runs_through_the_stores_actor_on_a_producers(tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(tasks)  # workers need not have this folder
    plan = small_plan(tmp_path)
    with running_producers(1, 0, 0, {}, producer_spec(plan), 120) as (producers, _):
        actor = start_store(plan.layout, 2**20, 60)
        ray.get(actor.begin.remote(producers, {}, None))
        store = StoreClient(actor)
        assert store.run(CountLongRows(0, 5.0)) == {"long": long_rows(plan, 5.0), "before": 0}
        assert store.run(CountLongRows(0, 0.0)) == {"long": plan.layout.rows[0], "before": 1}
        with pytest.raises(NumericError, match="too large"):
            store.run(Overflow())
        (process,) = processes("StoreActor")
        libraries = {Path(mapped.path).name for mapped in process.memory_maps()}
        assert not any(name.startswith("libtorch") for name in libraries), "it would be over the store's budget"
        ray.kill(actor)
