"""What the driver asks of the activation store and of trials' processes to keep a launch going, and how over Ray."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gsae_ray.activations.production_log import ProductionLog
from gsae_ray.activations.store import StoreReport
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.storage.trial_directory import Attempt

STORE_TIMEOUT_S = 120.0
"""A store that gives no answer for as long is silent."""


class StoreDied(Exception):
    """The store's process died; it is being started again."""


class StoreSilent(Exception):
    """The store's process gave no answer within `STORE_TIMEOUT_S`."""


class StoreControl(Protocol):
    """The store, as the supervisor needs it."""

    def report(self) -> StoreReport | None:
        """Returns the state of the store; None where its process has just come up and waits for `begin`.

        Raises:
            StoreDied: its process died.
            StoreSilent: it gave no answer in time.
        """

    def begin(self, readers: Mapping[str, ReaderSpec], record: ProductionLog) -> None:
        """Has a store that has just come up take up its work.

        Args:
            readers: the trials that are still to be trained, by name.
            record: what was produced so far.

        Raises:
            StoreDied: its process died.
            StoreSilent: it gave no answer in time.
        """

    def restart(self) -> None:
        """Kills the store's process, which then is started again."""

    def abandon(self, trial: str, finished: bool) -> None:
        """Tells the store that a trial's process is gone; `finished`: for good. Does not wait for the store."""

    def kill_trial(self, attempt: Attempt) -> None:
        """Kills the process of a trial's attempt, on whichever node it runs. Does not wait for that."""


class RayStore:
    """`StoreControl` of the store's actor."""

    def __init__(self, actor: ActorHandle[Any], producers: Sequence[ActorHandle[Any]]) -> None:
        """Takes the store's actor, and the producers that it is to call."""
        self.actor = actor
        self.producers = producers

    def report(self) -> StoreReport | None:
        report: StoreReport | None = self._answer(self.actor.report.remote())
        return report

    def begin(self, readers: Mapping[str, ReaderSpec], record: ProductionLog) -> None:
        self._answer(self.actor.begin.remote(self.producers, readers, record))

    def restart(self) -> None:
        ray.kill(self.actor, no_restart=False)

    def abandon(self, trial: str, finished: bool) -> None:
        self.actor.call.remote("abandon", trial, finished)

    def kill_trial(self, attempt: Attempt) -> None:
        there = NodeAffinitySchedulingStrategy(attempt["node"], soft=False)
        kill = ray.remote(_kill_process).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        kill.remote(attempt["pid"])

    def _answer(self, ref: Any) -> Any:
        try:
            return ray.get(ref, timeout=STORE_TIMEOUT_S)
        except ray.exceptions.RayActorError as error:
            raise StoreDied from error
        except ray.exceptions.GetTimeoutError as error:
            raise StoreSilent from error


def _kill_process(pid: int) -> None:
    """Kills a worker of Ray on this node, but no other process that may have got its number."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)
