"""Has the kernels of engines compiled while producers load the model: trials find them in their node's cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gsae_ray.capacity.nodes import TRAINER, Node, nodes_for
from gsae_ray.config.recipe import EngineName
from gsae_ray.training.engines import compile_engine


def start_compiling(engines: Iterable[EngineName]) -> list[ray.ObjectRef[None]]:
    """Begins it, on the nodes that trials may go to; on this one, where nothing was compiled yet.

    Nobody needs to wait for it, and it may fail: a trial compiles what it does not find, and says what is wrong.

    Returns:
        what ends with it.
    """
    compiled: list[EngineName] = ["sparse-cpu"] if "sparse-cpu" in engines else []
    if not compiled:  # Triton compiles at the first step, on the GPU that it is for
        return []
    from gsae_ray.training.engines.compiled import holds_kernels  # here: sweeps of dense engines do without Numba

    there = [(Node.alive(node["Resources"], node["Labels"]), node["NodeID"]) for node in ray.nodes() if node["Alive"]]
    places = nodes_for(TRAINER, [node for node, _ in there])
    done = ray.get_runtime_context().get_node_id() if holds_kernels() else None
    task = ray.remote(_compile)
    return [
        task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote(compiled)
        for node, node_id in there
        if node_id != done and any(node is place for place in places)
    ]


def _compile(engines: list[EngineName]) -> None:
    """Runs on a node."""
    with contextlib.suppress(Exception):
        from gsae_ray.training.engines.compiled import holds_kernels

        for engine in engines if not holds_kernels() else ():
            compile_engine(engine)
