"""Ray's shells round the producer and the store: nothing but the crossing of process boundaries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from gsae_ray.activations.chunks import Array, SiteStatistics
from gsae_ray.activations.store import ActivationStore, ProducerDied, Ref
from gsae_ray.errors import ProductionError, UserError, reason
from gsae_ray.evaluation.metrics import Evaluation

if TYPE_CHECKING:
    from gsae_ray.activations.producer import Producer, ProducerSpec


class ProducerShell:
    """A producer in a process of its own."""

    def __init__(self, spec: ProducerSpec) -> None:
        self.spec = spec

    @cached_property
    def producer(self) -> Producer:
        """Made at the first call, so that what goes wrong is that call's error and not a dead actor."""
        # Imported here, so that trials, which need this module too, do not load transformers and datasets.
        from gsae_ray.activations.producer import Producer

        return Producer(self.spec)

    def ready(self) -> str:
        """The device it runs on, once the model is loaded."""
        return str(self.producer.device)

    def produce(self, block: int, sites: Sequence[str]) -> list[Any]:
        """[statistics, chunk, chunk, …], each an object of its own."""
        statistics, chunks = self.producer.produce(block, sites)
        return [statistics, *chunks]

    def evaluate(self, site: str, cfg: str, weights: bytes, pursuit_l0: int | None) -> Evaluation:
        return self.producer.evaluate(site, cfg, weights, pursuit_l0)


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

    async def evaluate(self, site: str, cfg: str, weights: Ref, pursuit_l0: int | None) -> Evaluation:
        evaluation: Evaluation = await self._result(self.actor.evaluate.remote(site, cfg, weights, pursuit_l0))
        return evaluation

    async def _result(self, ref: Any) -> Any:
        try:
            return await ref
        except ray.exceptions.RayActorError as error:
            raise ProducerDied("its process died") from error


class StoreShell(ActivationStore):
    """The store as an asyncio actor."""

    def __init__(self, producers: Sequence[ActorHandle[Any]], spec: ProducerSpec, *args: Any) -> None:
        super().__init__(spec.layout, [RayProducerClient(actor, spec) for actor in producers], *args)

    async def evaluate(self, site: str, cfg: str, weights: list[Ref], pursuit_l0: int | None = None) -> Evaluation:
        # In a list, so that Ray does not fetch the weights to the store on the way.
        return await super().evaluate(site, cfg, weights[0], pursuit_l0)


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


@contextlib.contextmanager
def running_producers(
    count: int, gpus: float, spec: ProducerSpec, timeout_s: float
) -> Iterator[list[ActorHandle[Any]]]:
    """Producers that are up, with the model loaded, for the length of the context.

    With GPUs they sit in a placement group of their own, so that one that restarts finds its GPU free. Without, they
    take no CPU slot: trials need those.

    Raises:
        UserError: the model cannot be loaded.
        ProductionError: they did not come up in time.
    """
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
    group = placement_group([{"GPU": gpus}] * count, strategy="SPREAD") if gpus else None
    producers: list[ActorHandle[Any]] = []
    try:
        if group is not None:
            ray.get(group.ready(), timeout=timeout_s)
            placement = PlacementGroupSchedulingStrategy(placement_group=group)
            options |= {"num_gpus": gpus, "scheduling_strategy": placement}
        else:
            options["scheduling_strategy"] = "SPREAD"
        actor = ray.remote(ProducerShell).options(**options)
        producers += [actor.remote(spec) for _ in range(count)]
        ray.get([producer.ready.remote() for producer in producers], timeout=timeout_s)
        yield producers
    except ray.exceptions.GetTimeoutError as error:
        raise ProductionError(
            f"producers did not come up in producers.timeout_s = {timeout_s:g} s: the cluster has no room for "
            f"{count} with {gpus:g} GPUs each, or the model takes longer to load"
        ) from error
    except ray.exceptions.RayTaskError as error:
        kind = UserError if isinstance(error, UserError) else ProductionError
        raise kind(reason(error)) from error
    except ray.exceptions.RayActorError as error:
        raise ProductionError(f"a producer's process died while it loaded the model: {reason(error)}") from error
    finally:
        for producer in producers:
            ray.kill(producer)
        if group is not None:
            remove_placement_group(group)


def start_store(producers: Sequence[ActorHandle[Any]], spec: ProducerSpec, *args: Any) -> ActorHandle[Any]:
    """The store, on the driver's node: it dies with the driver, not with a worker node. `args`: of ActivationStore."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    shell = ray.remote(StoreShell).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
    return shell.remote(producers, spec, *args)
