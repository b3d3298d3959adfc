"""A store of activations without Ray: its producer in this process, and a trial that reads from it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from gsae_ray.activations.producer import Producer
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.activations.store import ActivationStore


class Client:
    """A producer in this process, as the store calls it."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.produced: list[int] = []

    async def produce(self, block: int, sites: Sequence[str]) -> tuple[dict[str, SiteStatistics], list[Any]]:
        self.produced.append(block)
        return self.producer.produce(block, sites)

    async def run(self, task: Any) -> Any:
        return self.producer.run(task)


class StoreBlocks:
    """A trial's blocks from a store on an event loop of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: ActivationStore, trial: str) -> None:
        self.loop, self.store, self.trial = loop, store, trial

    def statistics(self) -> dict[str, SiteStatistics]:
        return self.loop.run_until_complete(self.store.attach(self.trial, 1))

    def open(self, block: int) -> None:
        self.chunks = self.loop.run_until_complete(self.store.lease(self.trial, 1, block))

    def chunk(self, index: int) -> NDArray[Any]:
        chunk: NDArray[Any] = self.chunks[index]
        return chunk
