"""The producer as a Ray actor: nothing but the crossing of process boundaries.

Whoever is handed an actor's handle loads the module of its class (Ray 2.60): the store does. So this module imports no
torch before there is a producer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ray.actor import ActorHandle

from gsae_ray.activations.task import ProducerTask
from gsae_ray.hardware import machine

if TYPE_CHECKING:
    from gsae_ray.activations.producer import Producer, ProducerSpec

REPORT_INTERVAL_S = 1.0
"""Between two reports of a producer on how many rows of a block it has made."""


class ProducerActor:
    """A producer in a process of its own."""

    def __init__(self, spec: ProducerSpec) -> None:
        self.spec = spec

    @cached_property
    def producer(self) -> Producer:
        """Made at the first call, so that what goes wrong is that call's error and not a dead actor."""
        from gsae_ray.activations.producer import Producer

        return Producer(self.spec)

    def ready(self) -> str:
        """Returns the kind of machine it runs on, once its source is open."""
        assert self.producer is not None
        return machine()

    def produce(self, block: int, sites: Sequence[str], store: ActorHandle[Any]) -> list[Any]:
        """Returns [statistics, chunk, chunk, …], each an object of its own; reports its progress to the store."""
        reported = time.monotonic()

        def made(rows: int) -> None:
            nonlocal reported
            if time.monotonic() - reported > REPORT_INTERVAL_S:
                reported = time.monotonic()
                store.call.remote("made", block, rows)

        statistics, chunks = self.producer.produce(block, sites, made)
        return [statistics, *chunks]

    def run(self, task: ProducerTask, store: ActorHandle[Any]) -> Any:
        return self.producer.run(task, lambda line: store.call.remote("say", line))
