"""Ray's shells round the producer and the store: nothing but the crossing of process boundaries.

The store's process loads this module, so it imports no torch: what that takes would be over the store's budget.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from gsae_ray.activations.chunks import Array, SiteStatistics
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer_pool import ProducerDied, Ref
from gsae_ray.activations.production_log import Record
from gsae_ray.activations.store import ActivationStore, Look, ReaderSpec
from gsae_ray.errors import ProductionError, reason
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.hardware import machine

if TYPE_CHECKING:
    from gsae_ray.activations.producer import Producer, ProducerSpec

BEAT_S = 3.0
"""Between two heartbeats of a trial; the store waits `LAPSE_S` for one."""
MADE_S = 1.0
"""Between two reports of a producer on the rows of a block."""
_PROCESS_DIED = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
)


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
        """The kind of machine it runs on, once the model is loaded."""
        assert self.producer.model is not None
        return machine()

    def produce(self, block: int, sites: Sequence[str], store: ActorHandle[Any]) -> list[Any]:
        """[statistics, chunk, chunk, …], each an object of its own. The store is told how many rows are made."""
        told = time.monotonic()

        def made(rows: int) -> None:
            nonlocal told
            if time.monotonic() - told > MADE_S:
                told = time.monotonic()
                store.call.remote("made", block, rows)

        statistics, chunks = self.producer.produce(block, sites, made)
        return [statistics, *chunks]

    def evaluate(self, site: str, cfg: str, weights: bytes, pursuit_l0: int | None) -> Evaluation:
        return self.producer.evaluate(site, cfg, weights, pursuit_l0)


class RayProducerClient:
    """The store's end of a `ProducerShell`. The store calls, so the store owns the references (RAY.md 2.2)."""

    def __init__(self, actor: ActorHandle[Any], layout: Layout, store: ActorHandle[Any]) -> None:
        self.actor = actor
        self.layout = layout
        self.store = store

    async def produce(self, block: int, sites: Sequence[str]) -> tuple[dict[str, SiteStatistics], list[Ref]]:
        objects = 1 + sum(len(self.layout.chunks(block, site)) for site in sites)
        refs = self.actor.produce.options(num_returns=objects).remote(block, sites, self.store)
        first, *chunks = refs if objects > 1 else [refs]
        return await self._result(first), chunks

    async def evaluate(self, site: str, cfg: str, weights: Ref, pursuit_l0: int | None) -> Evaluation:
        evaluation: Evaluation = await self._result(self.actor.evaluate.remote(site, cfg, *weights, pursuit_l0))
        return evaluation

    async def ready(self) -> str:
        machine: str = await self._result(self.actor.ready.remote())
        return machine

    async def restart(self) -> None:
        # The process is asked first, and after five seconds ended by its node: one that was stopped goes too.
        ray.kill(self.actor, no_restart=False)

    async def _result(self, ref: Any) -> Any:
        try:
            return await ref
        except _PROCESS_DIED as error:
            raise ProducerDied("its process died") from error
        except ray.exceptions.OwnerDiedError:  # of what we sent: weights whose trial has died
            raise
        except ray.exceptions.ObjectLostError as error:
            raise ProducerDied("its node died with the answer") from error


class StoreShell:
    """The store as an asyncio actor.

    Ray starts it again when its process died. It begins with the producers, the trials and the record that the driver
    has; until then its callers wait.
    """

    def __init__(self, layout: Layout, budget_bytes: int, timeout_s: float) -> None:
        self._layout = layout
        self._make = partial(ActivationStore, layout, budget_bytes=budget_bytes, timeout_s=timeout_s)
        self._begun = asyncio.Event()

    async def begin(
        self, producers: Sequence[ActorHandle[Any]], readers: Mapping[str, ReaderSpec], record: Record | None
    ) -> None:
        """Takes up the work: of the first store, or where one that died has left it."""
        if not self._begun.is_set():
            store = ray.get_runtime_context().current_actor
            clients = [RayProducerClient(actor, self._layout, store) for actor in producers]
            self._store = self._make(clients, readers=readers, record=record)
            self._begun.set()

    async def look(self) -> Look | None:
        """None: it waits for `begin`."""
        return self._store.look() if self._begun.is_set() else None

    async def call(self, method: str, *args: Any) -> Any:
        """A method of the `ActivationStore`."""
        await self._begun.wait()
        return await getattr(self._store, method)(*args)


class StoreClient:
    """How trials and the driver talk to the store: one that died is asked again when it is back."""

    def __init__(self, actor: ActorHandle[Any], patience_s: float = 300) -> None:
        """
        Args:
            patience_s: without a store for as long, the client gives up.
        """
        self.actor = actor
        self.patience_s = patience_s

    def call(self, method: str, *args: Any) -> Any:
        """The answer of `ActivationStore.method`.

        Raises:
            ProductionError: there is no store.
            Exception: as the method.
        """
        gone_since: float | None = None
        while True:
            asked = time.monotonic()
            try:
                return ray.get(self.actor.call.remote(method, *args))
            except ray.exceptions.ActorDiedError as error:  # not to come back: the sweep is over
                raise ProductionError("the activation store has ended") from error
            except ray.exceptions.RayActorError as error:
                if gone_since is None or time.monotonic() - asked > 5:  # there was one: the call has waited in it
                    gone_since = time.monotonic()
                if time.monotonic() - gone_since > self.patience_s:
                    raise ProductionError(
                        f"the activation store is gone for {self.patience_s:g} s ({reason(error)}); finished work is "
                        "kept: the same command with --resume goes on"
                    ) from error
            time.sleep(0.5)

    def evaluate(self, site: str, cfg: str, weights: bytes, pursuit_l0: int | None = None) -> Evaluation:
        """As `Producer.evaluate`."""
        ref = [ray.put(weights)]  # in a list, so that Ray does not fetch the weights to the store on the way
        evaluation: Evaluation = self.call("evaluate", site, cfg, ref, pursuit_l0)
        return evaluation

    def tell(self, method: str, *args: Any) -> None:
        """Calls without waiting for anything; a store that is dead does not hear it."""
        self.actor.call.remote(method, *args)


class StoreSource:
    """A trial's `Source`: leases from the store, chunks from the object store. A thread tells that the trial lives."""

    def __init__(self, store: StoreClient, trial: str, attempt: int) -> None:
        self.store = store
        self.caller = trial, attempt
        self._block = -1
        self._refs: list[Ref] = []
        self._closed = threading.Event()
        store.tell("come", *self.caller)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S) and ray.is_initialized():  # a call without Ray would start one
            self.store.tell("beat", *self.caller)

    def statistics(self) -> SiteStatistics:
        statistics: SiteStatistics = self.store.call("attach", *self.caller)
        return statistics

    def open(self, block: int) -> None:
        self._refs = []  # before the next lease: what we still refer to cannot be freed
        self._block = block
        self._refs = self.store.call("lease", *self.caller, block)

    def chunk(self, index: int) -> Array:
        while True:
            if index + 1 < len(self._refs):
                ray.wait([self._refs[index + 1]], timeout=0, fetch_local=True)  # start the transfer to this node
            try:
                array: Array = ray.get(self._refs[index])
            except ray.exceptions.ObjectLostError:  # with its node, or with the store, which owned it
                self._refs = []
                self.store.call("lost", *self.caller)
                self.open(self._block)
            else:
                return array

    def close(self, finished: bool) -> None:
        """The trial reads no more."""
        self._closed.set()
        self._refs = []
        self.store.tell("release", *self.caller, finished)
