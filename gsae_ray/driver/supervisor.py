"""The driver's watch over a launch: the store and its record, trials that hang or die for good, other drivers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gsae_ray.activations.production_log import PRODUCTION_LOG, ProductionLog
from gsae_ray.activations.store import StoreReport, Wait
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.config.sections import TrialSettings
from gsae_ray.config.trial import TrialSpec
from gsae_ray.driver.cluster_nodes import AGAIN_S, ROOM_S, describe_room
from gsae_ray.errors import ReplacedError, SweepStoppedError, first_line
from gsae_ray.storage.driver_lock import Driver
from gsae_ray.storage.event_log import EventLog
from gsae_ray.storage.trial_directory import TrialDirectory

INTERVAL_S = 1.0
DEATHS = 5
"""A trial whose process dies as often without a new checkpoint has failed."""
STORE_PATIENCE_S = 120.0
"""A store that is silent for longer is killed."""
LOOKS_BEFORE_KILL = 5
LONG_WAIT_S = 30.0
"""A wait for activations that takes longer goes to the log."""


class Supervisor(threading.Thread):
    """Looks after the store every second, in a thread of the driver."""

    def __init__(
        self,
        store: ActorHandle[Any],
        producers: Sequence[ActorHandle[Any]],
        readers: Mapping[str, ReaderSpec],
        directories: Mapping[str, TrialDirectory],
        driver: Driver,
        record_path: Path,
        trials: TrialSettings,
        log: EventLog,
        show_waits: Callable[[tuple[Wait, ...]], None],
    ) -> None:
        """
        Args:
            producers: that the store is to call.
            readers: the trials to train; directories: theirs.
            record_path: where the record is kept; what is there already is gone on with.
            trials: how long one may be silent until it is killed, and how long none may have room.
        """
        super().__init__(name="supervisor", daemon=True)
        self.store = store
        self.producers = producers
        self.readers = readers
        self.directories = directories
        self.driver = driver
        self.record_path = record_path
        self.hang_timeout_s = trials.hang_timeout_s
        self.room_timeout_s = trials.room_timeout_s
        self.log = log
        self.show_waits = show_waits
        self.record = PRODUCTION_LOG.read_whole(record_path) or ProductionLog()
        self._written: ProductionLog | None = None
        self.stopped: SweepStoppedError | None = None
        """Why the sweep has to stop, where it has."""
        self.deaths: dict[str, tuple[int, int]] = {}
        """Trial -> tokens of its newest checkpoint, and how often it died since that was saved."""
        self._dead = False
        self._suspects: Counter[tuple[str, int]] = Counter()
        """Attempts that were silent for too long -> in how many looks, one after the other."""
        self._waits: dict[tuple[str, int], float] = {}
        self._looked = time.monotonic()
        self._machines: set[str] = set()
        self._done = threading.Event()

    def run(self) -> None:
        while True:
            try:
                self._look()
                self._looked = time.monotonic()
            except Exception as error:  # a hiccup of storage or of Ray; the next round comes in a second
                logging.getLogger(__name__).debug("the supervisor's look failed", exc_info=True)
                if time.monotonic() - self._looked > STORE_PATIENCE_S:
                    self.stop(
                        SweepStoppedError(
                            f"the driver cannot look after the sweep for {STORE_PATIENCE_S:g} s ({first_line(error)}); "
                            "finished work is kept: the same command with --resume goes on"
                        )
                    )
            if self._done.wait(INTERVAL_S):
                return

    def stop(self, why: SweepStoppedError) -> None:
        """Has the sweep stop; the first reason counts."""
        self.stopped = self.stopped or why

    def check(self) -> None:
        """
        Raises:
            SweepStoppedError: the sweep has to stop.
        """
        if self.stopped is not None:
            raise self.stopped

    def finish(self) -> ProductionLog:
        """Ends the thread. Returns the record, with all that has happened."""
        self._done.set()
        self.join()
        with contextlib.suppress(Exception):  # the store may be what has failed
            self._look()
        return self.record

    def _look(self) -> None:
        try:
            self.driver.check()
        except ReplacedError as error:  # the other writes down what happens now
            self.stop(error)
            return
        try:
            report: StoreReport | None = ray.get(self.store.report.remote(), timeout=STORE_PATIENCE_S)
            if report is None:
                # It has just come up: the first one, or one whose predecessor died.
                begun = self.store.begin.remote(self.producers, self._unfinished(), self.record)
                ray.get(begun, timeout=STORE_PATIENCE_S)
        except ray.exceptions.RayActorError:
            if not self._dead:
                self._dead = True
                self.log.say("the activation store's process died; it is started again, and blocks are made again")
            return
        except ray.exceptions.GetTimeoutError:
            self.log.say(f"the activation store gave no answer for {STORE_PATIENCE_S:g} s; its process is killed")
            ray.kill(self.store, no_restart=False)
            return
        self._dead = False
        if report is None:
            return
        for event in report.events:
            self.log.say(event)
        self.record = report.record
        if self.record != self._written:
            PRODUCTION_LOG.write(self.record_path, self.record)
            self._written = self.record
        self._follow_waits(report.waits)
        for machine in report.machines:
            self.met(machine)
        silent = {(t, attempt) for t, (attempt, seconds) in report.silent.items() if seconds > self.hang_timeout_s}
        self._suspects = Counter({suspect: self._suspects[suspect] + 1 for suspect in silent})
        for suspect, times in self._suspects.items():
            # Not at once: when it was the store that stood still, it hears of the trials first now. Nor only once.
            if times % (LOOKS_BEFORE_KILL + int(self.hang_timeout_s)) == LOOKS_BEFORE_KILL:
                self._kill(*suspect)

    def _unfinished(self) -> dict[str, ReaderSpec]:
        """The trials that are still to be trained, with the attempts of this session."""
        readers = {}
        for name, reader in self.readers.items():
            if not self.directories[name].ended:
                begun = self.directories[name].newest_begun
                attempt = begun["attempt"] if begun["session"] == self.driver.session else 0
                readers[name] = dataclasses.replace(reader, attempt=attempt)
        return readers

    def _follow_waits(self, waits: tuple[Wait, ...]) -> None:
        self.show_waits(waits)
        now = time.monotonic()
        since = {(wait.trial, wait.block): self._waits.get((wait.trial, wait.block), now) for wait in waits}
        for wait in waits:
            if now - since[wait.trial, wait.block] > LONG_WAIT_S:
                self.log.say(f"{wait.trial} waits for block {wait.block}: {wait.reason}", show=False)
                since[wait.trial, wait.block] = float("inf")  # once
        self._waits = since

    def _kill(self, trial: str, attempt: int) -> None:
        """Ends the process of a trial that hangs; Tune sees it die, and tries the trial again."""
        begun = self.directories[trial].newest_begun
        if begun["attempt"] != attempt or "pid" not in begun:
            return  # it has been tried again meanwhile
        self.log.say(f"{trial} is silent for trials.hang_timeout_s = {self.hang_timeout_s:g} s; its process is killed")
        there = NodeAffinitySchedulingStrategy(begun["node"], soft=False)
        kill = ray.remote(_kill_process).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        kill.remote(begun["pid"])

    def met(self, machine: str) -> None:
        """A trial or a producer ran on such a machine; more than one kind is told."""
        if machine not in self._machines:
            self._machines.add(machine)
            if len(self._machines) > 1:
                self.log.say(
                    f"trials and producers run on {len(self._machines)} kinds of machines; the last bits of an SAE "
                    f"depend on which: {'; '.join(sorted(self._machines))}"
                )

    @property
    def machines(self) -> list[str]:
        """Kinds of machines that trials and producers ran on."""
        return sorted(self._machines)


def _kill_process(pid: int) -> None:
    """Kills a worker of Ray on this node; nothing else that may have got its number."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)


def _guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """A callback whose errors are logged: one that reached Tune would end the sweep."""

    @functools.wraps(hook)
    def wrapped(self: TrialWatch, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        try:
            hook(self, trial, **info)
        except Exception:
            logging.getLogger(__name__).warning("%s failed", hook.__name__, exc_info=True)

    return wrapped


class TrialWatch(tune.Callback):
    """Tries trials again whose processes died, until they die without getting on; stops a sweep that has no room."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self._without_room: float | None = None
        """Since when no trial has had room, where one waits for it."""
        self._tell = 0.0
        """When that is to be told of."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks down for a restore, which is not used

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Two sweeps whose producers hold what the other's trials need would else wait for each other for ever."""
        states, now = {trial.status for trial in trials}, time.monotonic()
        if tune.experiment.Trial.RUNNING in states or tune.experiment.Trial.PENDING not in states:
            self._without_room = None
        elif self._without_room is None:
            self._without_room, self._tell = now, now + ROOM_S
        elif now - self._without_room > self.supervisor.room_timeout_s:
            self.supervisor.stop(
                SweepStoppedError(
                    f"no trial has had room on the cluster for trials.room_timeout_s = "
                    f"{self.supervisor.room_timeout_s:g} s, so what the producers hold is given back; the same command "
                    "with --resume goes on when there is room"
                )
            )
        elif now > self._tell:
            self._tell = now + AGAIN_S
            with contextlib.suppress(Exception):  # Ray may not tell; an error here would end the sweep
                self.supervisor.log.say(f"no trial runs: {describe_room()}")

    @_guarded
    def on_trial_result(self, trial: Any, result: dict[str, Any]) -> None:
        if "machine" in result:
            self.supervisor.met(result["machine"])

    @_guarded
    def on_trial_recover(self, trial: Any) -> None:
        self._died(trial)

    @_guarded
    def on_trial_error(self, trial: Any) -> None:  # as Tune does when a process dies that was to be used again
        self._died(trial)

    @_guarded
    def on_trial_complete(self, trial: Any) -> None:
        name = trial.config["trial"]["name"]
        self._abandon(name, self.supervisor.directories[name].ended)

    def _abandon(self, name: str, finished: bool) -> None:
        self.supervisor.store.call.remote("abandon", name, finished)

    def _died(self, trial: Any) -> None:
        spec = TrialSpec.from_json(trial.config["trial"])
        # It goes to the end of Tune's queue: those before it may need the room that it holds.
        self._abandon(spec.name, finished=False)
        reason = _last_line(trial.get_error())
        directory = TrialDirectory(self.supervisor.directories[spec.name].path)
        deaths, at = self.supervisor.deaths, directory.newest_checkpoint
        before, times = deaths.get(spec.name, (-1, 0))
        deaths[spec.name] = at, times = max(at, before), times + 1 if at <= before else 1
        failed = times >= DEATHS and not directory.ended
        if failed:
            trial.max_failures = 0  # if it cannot even be started, that is its end
            directory.begin_attempt(spec, self.supervisor.driver.session)
            directory.fail(f"its process died {times} times without a checkpoint after {at:,} tokens: {reason}")
            self._abandon(spec.name, finished=True)
        self.supervisor.log.say(
            f"{spec.name} died ({reason}); it {'has failed' if failed else f'is tried again from {at:,} tokens'}"
        )


def _last_line(error: Any) -> str:
    """What Tune wrote down of the last failure, in a few words."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    reasons = [line for line in lines if "Error" in line or "died" in line]
    return (reasons or lines or ["its process died"])[-1][:300]


class StopWhenAsked(tune.Stopper):
    """Ends all trials when one says that the sweep cannot go on, or the supervisor does."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as for TrialWatch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if result.get("stopped"):
            self.supervisor.stop(SweepStoppedError(result["stopped"]))
        return False

    def stop_all(self) -> bool:
        return self.supervisor.stopped is not None
