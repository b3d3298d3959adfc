"""The store as a Ray actor, and its clients: nothing but the crossing of process boundaries.

The store's process loads this module, so it imports no torch, whose memory would exceed the store's budget.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer_pool import ProducerDied, Ref
from gsae_ray.activations.production_log import ProductionLog
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.activations.store import ActivationStore, StoreReport
from gsae_ray.activations.task import ProducerTask
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.errors import ProductionError, reason

BEAT_S = 3.0
"""Between two heartbeats of a trial; the store waits `LAPSE_S` for one."""
_PROCESS_DIED = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
)


class RayProducerClient:
    """The store's end of a `ProducerActor`.

    The store makes the calls, so it owns the references to their results: these live as long as the store's process,
    whatever becomes of the producer's.
    """

    def __init__(self, actor: ActorHandle[Any], layout: Layout, store: ActorHandle[Any]) -> None:
        self.actor = actor
        self.layout = layout
        self.store = store

    async def produce(self, block: int, sites: Sequence[str]) -> tuple[dict[str, SiteStatistics], list[Ref]]:
        objects = 1 + sum(len(self.layout.chunks(block, site)) for site in sites)
        refs = self.actor.produce.options(num_returns=objects).remote(block, sites, self.store)
        first, *chunks = refs if objects > 1 else [refs]
        return await self._result(first), chunks

    async def run(self, task: Ref) -> Any:
        (ref,) = task  # of `StoreClient.run`
        return await self._result(self.actor.run.remote(ref, self.store))

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
        except ray.exceptions.OwnerDiedError:  # of what we sent: a task whose trial has died
            raise
        except ray.exceptions.ObjectLostError as error:
            raise ProducerDied("its node died with the answer") from error


class StoreActor:
    """The store as an asyncio actor.

    Ray starts it again when its process died. It begins with the producers, the trials and the record that the driver
    has; until then its callers wait.
    """

    def __init__(self, layout: Layout, budget_bytes: int, timeout_s: float) -> None:
        self._layout = layout
        self._make = partial(ActivationStore, layout, budget_bytes=budget_bytes, timeout_s=timeout_s)
        self._begun = asyncio.Event()

    async def begin(
        self, producers: Sequence[ActorHandle[Any]], readers: Mapping[str, ReaderSpec], record: ProductionLog | None
    ) -> None:
        """Starts the store's work, from the beginning or from where a store that died has left it."""
        if not self._begun.is_set():
            store = ray.get_runtime_context().current_actor
            clients = [RayProducerClient(actor, self._layout, store) for actor in producers]
            self._store = self._make(clients, readers=readers, record=record)
            if record is None or not record.produced:  # else trials may be reading other blocks already
                self._store.produce_first()
            self._begun.set()

    async def report(self) -> StoreReport | None:
        """Returns how things stand; None before `begin`."""
        return self._store.report() if self._begun.is_set() else None

    async def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the `ActivationStore`."""
        await self._begun.wait()
        return await getattr(self._store, method)(*args)


class StoreClient:
    """How trials and the driver talk to the store: one that died is asked again when it is back."""

    def __init__(self, actor: ActorHandle[Any], patience_s: float = 300) -> None:
        """Does not call the store yet.

        Args:
            actor: the store's.
            patience_s: without a store for as long, the client gives up.
        """
        self.actor = actor
        self.patience_s = patience_s

    def call(self, method: str, *args: Any) -> Any:
        """Calls `ActivationStore.method` and returns its answer.

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

    def run(self, task: ProducerTask, times: int = 1) -> Any:
        """As `Producer.run`, on any producer. `times`, and what it raises: as `ActivationStore.run`."""
        ref = [ray.put(task)]  # in a list, so that Ray does not fetch the task to the store on the way
        return self.call("run", task.name, ref, times)

    def tell(self, method: str, *args: Any) -> None:
        """Calls a method without waiting for its answer; a store that is dead misses the call."""
        self.actor.call.remote(method, *args)


class StoreBlockReader:
    """A trial's `BlockReader`: leases from the store, chunks from the object store; a thread sends heartbeats."""

    def __init__(self, store: StoreClient, trial: str, attempt: int) -> None:
        self.store = store
        self.caller = trial, attempt
        self._block = -1
        self._refs: list[Ref] = []
        self._closed = threading.Event()
        store.tell("begin_attempt", *self.caller)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S) and ray.is_initialized():  # a call without Ray would start one
            self.store.tell("beat", *self.caller)

    def statistics(self) -> dict[str, SiteStatistics]:
        statistics: dict[str, SiteStatistics] = self.store.call("attach", *self.caller)
        return statistics

    def open(self, block: int) -> None:
        self._refs = []  # before the next lease: what we still refer to cannot be freed
        self._block = block
        self._refs = self.store.call("lease", *self.caller, block)

    def chunk(self, index: int) -> NDArray[Any]:
        while True:
            if index + 1 < len(self._refs):
                ray.wait([self._refs[index + 1]], timeout=0, fetch_local=True)  # start the transfer to this node
            try:
                array: NDArray[Any] = ray.get(self._refs[index])
            except ray.exceptions.ObjectLostError:  # with its node, or with the store, which owned it
                self._refs = []
                self.store.call("lost", *self.caller)
                self.open(self._block)
            else:
                return array

    def close(self, finished: bool) -> None:
        """Stops reading and sending heartbeats."""
        self._closed.set()
        self._refs = []
        self.store.tell("release", *self.caller, finished)
