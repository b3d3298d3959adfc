"""Run by test_waiting: producers wait for a node that holds them, which comes, and dies while their processes start.

Then: they hold their GPUs when a node dies.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import ray
from faults import NODE_STORE_BYTES, head_without_slots, wait_until
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gsae_ray.driver import start_actors


class Slow:
    """What it is asked first takes so long that its node dies while it is asked whether it is there."""

    def __init__(self, folder: Path) -> None:
        (folder / str(time.time_ns())).touch()

    def work(self) -> None:
        time.sleep(20)


def hold_their_gpus(cluster: Cluster) -> None:
    """A producer's GPU is another node's when its own dies, and nobody's in the end."""

    class Producer:
        """In the place of one with the language model, which would need a real GPU."""

        def __init__(self, spec: None) -> None:
            pass

        def ready(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    labels = {"gsae-role": "producer"}

    def add() -> Any:
        return cluster.add_node(num_gpus=1, num_cpus=1, object_store_memory=NODE_STORE_BYTES, labels=labels)

    def gpus() -> float:
        return float(ray.available_resources().get("GPU", 0))

    cluster.add_node(num_gpus=2, num_cpus=1, object_store_memory=NODE_STORE_BYTES)  # which producers may not take
    first = add()
    wait_until(lambda: gpus() == 3)
    start_actors.ProducerActor = Producer  # type: ignore[assignment, attr-defined]
    with start_actors.running_producers(1, 1, 2**30, labels, None, 60) as ((producer,), (where,)):  # type: ignore[arg-type]
        assert where == first.node_id
        wait_until(lambda: gpus() == 2)
        cluster.remove_node(first, allow_graceful=False)
        second = add()
        again = producer.ready.options(max_task_retries=-1).remote()
        assert ray.get(again, timeout=60) == second.node_id
        wait_until(lambda: gpus() == 2)
    wait_until(lambda: gpus() == 3)


def main(folder: Path) -> None:
    """In `folder`, which is empty, each start leaves a file."""
    start_actors.TELL_AFTER_S = 2.0  # type: ignore[attr-defined]
    cluster = head_without_slots()
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        group = placement_group([{"GPU": 1}])
        place = PlacementGroupSchedulingStrategy(group)
        options = {"num_cpus": 0, "num_gpus": 1, "max_restarts": -1, "max_task_retries": 0}
        slow = ray.remote(Slow).options(scheduling_strategy=place, **options).remote(folder)
        work = slow.work.remote()
        nodes: list[Any] = []

        def check() -> None:
            """Once a second: a node comes when the wait was told of, is killed at the first start, another comes."""
            if (said and not nodes) or (starts() and len(nodes) == 1):
                if nodes:
                    cluster.remove_node(nodes[0], allow_graceful=False)
                nodes.append(cluster.add_node(num_gpus=1, num_cpus=1, object_store_memory=NODE_STORE_BYTES))

        def starts() -> int:
            return len(list(folder.iterdir()))

        said: list[str] = []
        start_actors._wait_for_processes([slow], 1, said.append, check)
        wait_until(lambda: starts() == 2)
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(work)
            raise AssertionError("nothing was lost with the node")
        print(said, len(nodes))  # noqa: T201
        ray.kill(slow)
        remove_placement_group(group)
        cluster.remove_node(nodes[1], allow_graceful=False)
        hold_their_gpus(cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    starts = Path(sys.argv[1]) / "starts"
    starts.mkdir()
    main(starts)
