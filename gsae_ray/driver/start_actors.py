"""Starts producers and the store: on which nodes, with which resources."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from gsae_ray.activations.layout import Layout
from gsae_ray.actors.producer_actor import ProducerActor
from gsae_ray.actors.store_actor import StoreActor
from gsae_ray.driver.cluster_nodes import AGAIN_S, ROOM_S, describe_room
from gsae_ray.errors import ProductionError, UserError, reason

if TYPE_CHECKING:
    from gsae_ray.activations.producer import ProducerSpec


@contextlib.contextmanager
def running_producers(
    count: int,
    gpus: float,
    nbytes: int,
    labels: dict[str, str],
    spec: ProducerSpec,
    timeout_s: float,
    say: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[tuple[list[ActorHandle[Any]], list[str]]]:
    """Producers that are up, with the model loaded, for the length of the context; and the machines that they run on.

    With GPUs they sit in a placement group of their own, so that one that restarts finds its GPU free; a bundle whose
    node has died is placed on another. Without, they take no CPU slot: trials need those. They wait for their places as
    long as it takes: another sweep may hold them, or a machine has to be started. They hold nothing meanwhile, since a
    group gets all of its places at once.

    Args:
        nbytes: of its node's memory that each asks for, with its GPUs.
        labels: the selector of the nodes that they may go to.
        timeout_s: for loading the model.
        say: is told what is waited for.
        check: is called every second until they are up; its error ends that.
    Raises:
        UserError: the model cannot be loaded.
        ProductionError: they did not come up in time.
    """
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
    group = None
    if gpus:
        places = [labels] * count if labels else None
        bundle = {"GPU": gpus} | ({"memory": nbytes} if nbytes else {})
        group = placement_group([bundle] * count, strategy="SPREAD", bundle_label_selector=places)
    producers: list[ActorHandle[Any]] = []
    try:
        with _coming_up():
            if group is not None:
                placement = PlacementGroupSchedulingStrategy(placement_group=group)
                options |= {"num_gpus": gpus, "memory": nbytes or None, "scheduling_strategy": placement}
            else:
                options |= {"scheduling_strategy": "SPREAD", "label_selector": labels or None}
            actor = ray.remote(ProducerActor).options(**options)
            producers += [actor.remote(spec) for _ in range(count)]
            _wait_for_room(producers, gpus, say, check)
            machines = _loaded(producers, timeout_s, check)
        yield producers, machines
    finally:
        for producer in producers:
            ray.kill(producer)
        if group is not None:
            remove_placement_group(group)


def _wait_for_room(
    producers: list[ActorHandle[Any]], gpus: float, say: Callable[[str], None], check: Callable[[], None]
) -> None:
    """Until each has a process, somewhere."""
    # Ray's own method of all actors: theirs would load the model first. Asked again of one whose node has gone.
    up = [producer.__ray_ready__.options(max_task_retries=-1).remote() for producer in producers]
    tell = time.monotonic() + ROOM_S
    for waiting in _every_second(up, check):
        if time.monotonic() > tell:
            tell += AGAIN_S
            share = f", with {gpus:g} GPUs each" if gpus else ""
            say(f"{waiting} of {len(up)} producers wait for room on the cluster{share}: {describe_room()}")


def _loaded(producers: list[ActorHandle[Any]], timeout_s: float, check: Callable[[], None]) -> list[str]:
    """Until each has loaded the model. Returns the machines that they run on."""
    ready = [producer.ready.remote() for producer in producers]
    deadline = time.monotonic() + timeout_s
    for _ in _every_second(ready, check):
        if time.monotonic() > deadline:
            raise ProductionError(
                f"producers did not load the model in producers.timeout_s = {timeout_s:g} s; if it takes longer, raise "
                "that"
            )
    machines: list[str] = ray.get(ready)
    return machines


def _every_second(answers: list[Any], check: Callable[[], None]) -> Iterator[int]:
    """Until all have come: how many have not. An error of one does not wait for the others."""
    while True:
        come, waiting = ray.wait(answers, num_returns=len(answers), timeout=1)
        ray.get(come)
        if not waiting:
            return
        check()
        yield len(waiting)


@contextlib.contextmanager
def _coming_up() -> Iterator[None]:
    """Errors of producers that do not come up, as what is to be done."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        kind = UserError if isinstance(error, UserError) else ProductionError
        raise kind(reason(error)) from error
    except ray.exceptions.RayActorError as error:
        raise ProductionError(f"a producer's process died while it loaded the model: {reason(error)}") from error


def start_store(layout: Layout, budget_bytes: int, timeout_s: float) -> ActorHandle[Any]:
    """The store, on the driver's node: it dies with the driver, not with a worker node. It waits for `begin`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_concurrency": 10_000, "max_restarts": -1, "max_task_retries": 0}
    shell = ray.remote(StoreActor).options(scheduling_strategy=here, **options)
    return shell.remote(layout, budget_bytes, timeout_s)
