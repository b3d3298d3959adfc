"""Ray's shells round the producer and the store: nothing but the crossing of process boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gsae_ray.activations.chunks import Array, SiteStatistics
from gsae_ray.activations.store import ActivationStore, ProducerDied, Ref

if TYPE_CHECKING:
    from gsae_ray.activations.producer import ProducerSpec


class ProducerShell:
    """A producer in a process of its own."""

    def __init__(self, spec: ProducerSpec) -> None:
        # Here, so that trials, which need this module too, do not load transformers and datasets.
        from gsae_ray.activations.producer import Producer

        self.producer = Producer(spec)

    def ready(self) -> str:
        """The device it runs on."""
        return str(self.producer.device)

    def produce(self, block: int, sites: Sequence[str]) -> list[Any]:
        """[statistics, chunk, chunk, …], each an object of its own."""
        statistics, chunks = self.producer.produce(block, sites)
        return [statistics, *chunks]

    def evaluate(self, site: str, cfg: str, weights: bytes) -> dict[str, float]:
        return self.producer.evaluate(site, cfg, weights)


class RayProducerClient:
    """The store's end of a `ProducerShell`. The store calls, so the store owns the references (RAY.md 2.2)."""

    def __init__(self, actor: ActorHandle[Any], spec: ProducerSpec) -> None:
        self.actor = actor
        self.layout = spec.layout

    async def produce(self, block: int, sites: Sequence[str]) -> tuple[dict[str, SiteStatistics], list[Ref]]:
        objects = 1 + sum(len(self.layout.chunks(block, site)) for site in sites)
        refs = self.actor.produce.options(num_returns=objects).remote(block, sites)
        first, *chunks = refs if objects > 1 else [refs]
        return await self._result(first), chunks

    async def evaluate(self, site: str, cfg: str, weights: Ref) -> dict[str, float]:
        metrics: dict[str, float] = await self._result(self.actor.evaluate.remote(site, cfg, weights))
        return metrics

    async def _result(self, ref: Any) -> Any:
        try:
            return await ref
        except ray.exceptions.RayActorError as error:
            raise ProducerDied("its process died") from error


class StoreShell(ActivationStore):
    """The store as an asyncio actor."""

    def __init__(self, producers: Sequence[ActorHandle[Any]], spec: ProducerSpec, *args: Any) -> None:
        super().__init__(spec.layout, [RayProducerClient(actor, spec) for actor in producers], *args)

    async def evaluate(self, site: str, cfg: str, weights: list[Ref]) -> dict[str, float]:
        # In a list, so that Ray does not fetch the weights to the store on the way.
        return await super().evaluate(site, cfg, weights[0])


class StoreSource:
    """A trial's `Source`: leases from the store, chunks from the object store."""

    def __init__(self, store: ActorHandle[Any], trial: str, attempt: int) -> None:
        self.store = store
        self.trial = trial
        self.attempt = attempt
        self._refs: list[Ref] = []

    def statistics(self) -> SiteStatistics:
        statistics: SiteStatistics = ray.get(self.store.attach.remote(self.trial, self.attempt))
        return statistics

    def open(self, block: int) -> None:
        self._refs = []  # before the next lease: what we still refer to cannot be freed
        self._refs = ray.get(self.store.lease.remote(self.trial, self.attempt, block))

    def chunk(self, index: int) -> Array:
        if index + 1 < len(self._refs):
            ray.wait([self._refs[index + 1]], timeout=0, fetch_local=True)  # start the transfer to this node
        array: Array = ray.get(self._refs[index])
        return array

    def close(self, finished: bool) -> None:
        self._refs = []
        ray.get(self.store.release.remote(self.trial, self.attempt, finished))


def start_producers(count: int, gpus: float, spec: ProducerSpec) -> list[ActorHandle[Any]]:
    """Producers that are up, with the model loaded.

    With GPUs they sit in a placement group of their own, so that one that restarts finds its GPU free. Without, they
    take no CPU slot: trials need those.
    """
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
    if gpus:
        group = placement_group([{"GPU": gpus}] * count, strategy="SPREAD")
        ray.get(group.ready())
        placement = PlacementGroupSchedulingStrategy(placement_group=group)
        options |= {"num_gpus": gpus, "scheduling_strategy": placement}
    else:
        options["scheduling_strategy"] = "SPREAD"
    actor = ray.remote(ProducerShell).options(**options)
    producers = [actor.remote(spec) for _ in range(count)]
    ray.get([producer.ready.remote() for producer in producers])
    return producers
