"""Starts producers, the store and the supervisor: on which nodes, with which resources."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from gsae_ray.activations.layout import Layout
from gsae_ray.actors.producer_actor import ProducerActor
from gsae_ray.actors.store_actor import StoreActor
from gsae_ray.driver.begin import Launch
from gsae_ray.driver.cluster_nodes import TELL_AFTER_S, TELL_EVERY_S, describe_free_resources
from gsae_ray.driver.prepare import producer_spec
from gsae_ray.driver.stop import StopRequest
from gsae_ray.driver.store_control import RayStore
from gsae_ray.driver.supervisor import Supervisor
from gsae_ray.driver.warm_up import start_compiling
from gsae_ray.errors import ProductionError, UserError, reason

if TYPE_CHECKING:
    from gsae_ray.activations.producer import ProducerSpec

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def running_producers(
    count: int,
    gpus: float,
    nbytes: int,
    labels: dict[str, str],
    spec: ProducerSpec,
    timeout_s: float,
    say: Callable[[str], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[tuple[list[ActorHandle[Any]], list[str]]]:
    """Starts producers, and has them run with the model loaded for the length of the context.

    With GPUs they sit in a placement group of their own, so that one that restarts finds its GPU free; a bundle whose
    node has died is placed on another. Without, they take no CPU slot: trials need those. They wait for their places as
    long as it takes: another sweep may hold them, or a machine has to be started. They hold nothing meanwhile, since a
    group gets all of its places at once.

    Args:
        count: how many.
        gpus: of each; may be a share of one.
        nbytes: of its node's memory that each asks for, with its GPUs.
        labels: the selector of the nodes that they may go to.
        spec: what each is made from.
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
        with _explained():
            if group is not None:
                placement = PlacementGroupSchedulingStrategy(placement_group=group)
                options |= {"num_gpus": gpus, "memory": nbytes or None, "scheduling_strategy": placement}
            else:
                options |= {"scheduling_strategy": "SPREAD", "label_selector": labels or None}
            actor = ray.remote(ProducerActor).options(**options)
            producers += [actor.remote(spec) for _ in range(count)]
            _wait_for_processes(producers, gpus, say, check)
            machines = _wait_for_models(producers, timeout_s, check)
        yield producers, machines
    finally:
        for producer in producers:
            ray.kill(producer)
        if group is not None:
            remove_placement_group(group)


def _wait_for_processes(
    producers: list[ActorHandle[Any]], gpus: float, say: Callable[[str], None], check: Callable[[], None]
) -> None:
    """Waits until each producer has a process on some node, and says what is free when that takes long."""
    # Ray's own method of all actors: a method of theirs would load the model first. One whose node goes is asked again.
    up = [producer.__ray_ready__.options(max_task_retries=-1).remote() for producer in producers]
    tell = time.monotonic() + TELL_AFTER_S
    for waiting in _every_second(up, check):
        if time.monotonic() > tell:
            tell += TELL_EVERY_S
            share = f", with {gpus:g} GPUs each" if gpus else ""
            say(f"{waiting} of {len(up)} producers wait for room on the cluster{share}: {describe_free_resources()}")


def _wait_for_models(producers: list[ActorHandle[Any]], timeout_s: float, check: Callable[[], None]) -> list[str]:
    """Waits until each producer has loaded the model. Returns the kinds of machines that they run on."""
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
    """Yields every second how many answers are still missing, until none is. Raises the error of one at once."""
    while True:
        there, waiting = ray.wait(answers, num_returns=len(answers), timeout=1)
        ray.get(there)
        if not waiting:
            return
        check()
        yield len(waiting)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns errors of producers that do not come up into lines that say what to do."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        kind = UserError if isinstance(error, UserError) else ProductionError
        raise kind(reason(error)) from error
    except ray.exceptions.RayActorError as error:
        raise ProductionError(f"a producer's process died while it loaded the model: {reason(error)}") from error


def start_store(layout: Layout, budget_bytes: int, timeout_s: float) -> ActorHandle[Any]:
    """Starts the store on the driver's node, so that no worker node takes it along. It waits for `begin`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_concurrency": 10_000, "max_restarts": -1, "max_task_retries": 0}
    actor = ray.remote(StoreActor).options(scheduling_strategy=here, **options)
    return actor.remote(layout, budget_bytes, timeout_s)


class Actors(NamedTuple):
    """The processes that trials of a launch need, and the thread that watches them."""

    store_actor: ActorHandle[Any]
    supervisor: Supervisor


@contextlib.contextmanager
def running_actors(launch: Launch, stop: StopRequest, check: Callable[[], None]) -> Iterator[Actors]:
    """Runs producers, the store that calls them and the supervisor for the length of the context.

    Args:
        launch: which has trials to be trained or to be evaluated.
        stop: by which the launch is stopped.
        check: called every second while the producers come up; its error ends that.

    Raises:
        UserError: the model cannot be loaded.
        SweepStoppedError: producers did not come up in time, the launch was asked to stop, or another driver has taken
            over.
    """
    settings, resources, log = launch.prepared.sweep.producers, launch.resources, launch.log

    def may_go_on() -> None:
        with contextlib.suppress(OSError):  # a hiccup of storage
            launch.driver.check()
        check()
        stop.check()

    producers_word = f"producer{'s' if settings.count > 1 else ''}"
    log.say(f"starting {settings.count} {producers_word} and {len(launch.pending)} trials")
    start_compiling(trial.spec.training.engine for trial in launch.pending if trial.name in launch.readers)
    with contextlib.ExitStack() as stack:
        store_actor = start_store(launch.prepared.layout, resources.budget_bytes, settings.timeout_s)
        stack.callback(ray.kill, store_actor)  # for producers that do not come up
        producers, machines = stack.enter_context(
            running_producers(
                settings.count,
                settings.gpus,
                resources.producer_bytes,
                resources.producer_labels,
                producer_spec(launch.prepared),
                settings.timeout_s,
                log.say,
                may_go_on,
            )
        )
        _LOG.info("the producers have loaded the model")
        supervisor = Supervisor(
            RayStore(store_actor, producers),
            {trial.name: trial for trial in launch.trials},
            launch.readers,
            launch.driver,
            launch.record_path,
            launch.prepared.sweep.trials,
            stop,
            log,
            launch.display.show_waits,
            launch.is_stopped,
        )
        for machine in machines:
            supervisor.saw_machine(machine)
        supervisor.start()
        try:
            yield Actors(store_actor, supervisor)
        finally:
            stop.shutting_down = True
            try:
                supervisor.finish()  # it may wait for a store that gives no answer
            finally:
                ray.kill(store_actor)  # before the producers, which it would start again; a cluster goes on
