"""The driver's watch over a launch: the store and its record, trials that hang or die for good, other drivers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from gsae_ray.activations.production_log import PRODUCTION_LOG, ProductionLog
from gsae_ray.activations.store import StoreReport, Wait
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.config.sections import TrialSettings
from gsae_ray.driver.stop import StopRequest
from gsae_ray.driver.store_control import STORE_TIMEOUT_S, StoreControl, StoreDied, StoreSilent
from gsae_ray.driver.trial_deaths import TrialDeaths
from gsae_ray.errors import ReplacedError, SweepStoppedError, first_line
from gsae_ray.storage.driver_lock import Driver
from gsae_ray.storage.event_log import EventLog
from gsae_ray.storage.trial_directory import Trial

INTERVAL_S = 1.0
"""Between two rounds of the supervisor."""
ROUNDS_BEFORE_KILL = 5
"""In as many rounds, one after the other, a trial has to be silent for too long until its process is killed."""
LONG_WAIT_S = 30.0
"""A trial's wait for activations that takes longer goes to the log."""


class Supervisor(threading.Thread):
    """Looks after the store and the trials of a launch every second, in a thread of the driver."""

    def __init__(
        self,
        store_control: StoreControl,
        trials: Mapping[str, Trial],
        readers: Mapping[str, ReaderSpec],
        driver: Driver,
        record_path: Path,
        settings: TrialSettings,
        stop: StopRequest,
        log: EventLog,
        show_waits: Callable[[tuple[Wait, ...]], None],
        is_stopped: Callable[[str], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the watch; `start` begins it.

        Args:
            store_control: of the activation store.
            trials: all trials of the launch, by name.
            readers: those of them that are to be trained, as the store knows them.
            driver: this driver's hold on the sweep's folder.
            record_path: where the record of productions is kept; what is there already is gone on with.
            settings: for how long a trial may be silent, and may wait for free resources.
            stop: by which the launch is stopped.
            log: where events go.
            show_waits: is given the trials that wait for activations, every second.
            is_stopped: whether a scheduler has stopped a trial.
            clock: time in seconds.
        """
        super().__init__(name="supervisor", daemon=True)
        self.store_control = store_control
        self.trials = trials
        self.readers = readers
        self.driver = driver
        self.record_path = record_path
        self.settings = settings
        self.stop = stop
        self.log = log
        self.show_waits = show_waits
        self.is_stopped = is_stopped
        self.clock = clock
        self.deaths = TrialDeaths()
        self.record = PRODUCTION_LOG.read_whole(record_path) or ProductionLog()
        self._written: ProductionLog | None = None
        self._store_is_dead = False
        self._silent_rounds: Counter[tuple[str, int]] = Counter()
        """Attempts that are silent for too long -> in how many rounds, one after the other."""
        self._waits: dict[tuple[str, int], float] = {}
        """Trial and block that it waits for -> since when; infinite once that is in the log."""
        self._succeeded_at = clock()
        self._machines: set[str] = set()
        self._ending = threading.Event()

    # ---- the store, in the thread ----

    def run(self) -> None:
        while True:
            self.round()
            if self._ending.wait(INTERVAL_S):
                return

    def round(self) -> None:
        """Looks at everything once. Errors may pass until the next round; those that stay stop the launch."""
        try:
            self._check()
            self._succeeded_at = self.clock()
        except Exception as error:  # of storage or of Ray
            logging.getLogger(__name__).debug("a round of the supervisor failed", exc_info=True)
            if self.clock() - self._succeeded_at > STORE_TIMEOUT_S:
                self.stop.set(
                    SweepStoppedError(
                        f"the driver cannot look after the sweep for {STORE_TIMEOUT_S:g} s ({first_line(error)}); "
                        "finished work is kept: the same command with --resume goes on"
                    )
                )

    def finish(self) -> None:
        """Ends the thread, and brings the record up to date a last time."""
        self._ending.set()
        self.join()
        with contextlib.suppress(Exception):  # the store may be what has failed
            self._check()

    def _check(self) -> None:
        try:
            self.driver.check()
        except ReplacedError as error:  # the other driver writes down what happens from now on
            self.stop.set(error)
            return
        try:
            report = self.store_control.report()
            if report is None:  # the first store, or one whose predecessor died
                self.store_control.begin(self._unfinished(), self.record)
        except StoreDied:
            if not self._store_is_dead:
                self._store_is_dead = True
                self.log.say("the activation store's process died; it is started again, and blocks are made again")
            return
        except StoreSilent:
            self.log.say(f"the activation store gave no answer for {STORE_TIMEOUT_S:g} s; its process is killed")
            self.store_control.restart()
            return
        self._store_is_dead = False
        if report is not None:
            self._take(report)

    def _unfinished(self) -> dict[str, ReaderSpec]:
        """Returns the trials that are still to be trained, each with its attempt in this session (0: none yet)."""
        readers = {}
        for name, reader in self.readers.items():
            directory = self.trials[name].directory
            if not directory.ended and not self.is_stopped(name):
                begun = directory.newest_begun
                attempt = begun["attempt"] if begun["session"] == self.driver.session else 0
                readers[name] = dataclasses.replace(reader, attempt=attempt)
        return readers

    def _take(self, report: StoreReport) -> None:
        for event in report.events:
            self.log.say(event)
        self.record = report.record
        if self.record != self._written:
            PRODUCTION_LOG.write(self.record_path, self.record)
            self._written = self.record
        self._follow_waits(report.waits)
        for machine in report.machines:
            self.saw_machine(machine)
        self._kill_hanging(report.silent)

    def _follow_waits(self, waits: tuple[Wait, ...]) -> None:
        """Shows what trials wait for, and logs each wait once that is long."""
        self.show_waits(waits)
        now = self.clock()
        since = {(wait.trial, wait.block): self._waits.get((wait.trial, wait.block), now) for wait in waits}
        for wait in waits:
            if now - since[wait.trial, wait.block] > LONG_WAIT_S:
                self.log.say(f"{wait.trial} waits for block {wait.block}: {wait.reason}", show=False)
                since[wait.trial, wait.block] = float("inf")
        self._waits = since

    def _kill_hanging(self, silent: Mapping[str, tuple[int, float]]) -> None:
        """Kills the processes of trials that hang; Tune sees them die, and tries the trials again."""
        timeout_s = self.settings.hang_timeout_s
        hanging = {(trial, attempt) for trial, (attempt, seconds) in silent.items() if seconds > timeout_s}
        self._silent_rounds = Counter({caller: self._silent_rounds[caller] + 1 for caller in hanging})
        for (trial, attempt), rounds in self._silent_rounds.items():
            # Not in the first round: where it was the store that stood still, it hears of the trials only now.
            # And again after as long: the kill may not have arrived.
            if rounds % (ROUNDS_BEFORE_KILL + int(timeout_s)) == ROUNDS_BEFORE_KILL:
                begun = self.trials[trial].directory.newest_begun
                if begun["attempt"] == attempt and "pid" in begun:  # else it has been tried again meanwhile
                    self.log.say(
                        f"{trial} is silent for trials.hang_timeout_s = {timeout_s:g} s; its process is killed"
                    )
                    self.store_control.kill_trial(begun)

    # ---- trials, as Tune's callbacks tell of them ----

    def trial_died(self, name: str, reason: str) -> bool:
        """Takes note that a trial's process died. Returns whether the trial has failed for good by that."""
        trial = self.trials[name]
        self.store_control.abandon(name, finished=False)
        tokens = trial.directory.newest_checkpoint
        failure = self.deaths.died(name, tokens, reason)
        failed = failure is not None and not trial.directory.ended
        if failure is not None and failed:
            self.fail(trial, failure)
        self.log.say(
            f"{name} died ({reason}); it {'has failed' if failed else f'is tried again from {tokens:,} tokens'}"
        )
        return failed

    def fail(self, trial: Trial, why: str) -> None:
        """Has a trial that does not run fail for good."""
        trial.directory.begin_attempt(trial.spec, self.driver.session)
        trial.directory.fail(why)
        self.store_control.abandon(trial.name, finished=True)

    def trial_ended(self, name: str) -> None:
        """Takes note that Tune has ended a trial: it is done, has failed, or was stopped."""
        finished = self.trials[name].directory.ended or self.is_stopped(name)
        self.store_control.abandon(name, finished=finished)

    # ---- machines ----

    def saw_machine(self, machine: str) -> None:
        """Takes note of the kind of machine that a trial or a producer runs on; a second kind is logged."""
        if machine not in self._machines:
            self._machines.add(machine)
            if len(self._machines) > 1:
                self.log.say(
                    f"trials and producers run on {len(self._machines)} kinds of machines; the last bits of an SAE "
                    f"depend on which: {'; '.join(self.machines)}"
                )

    @property
    def machines(self) -> list[str]:
        """Kinds of machines that trials and producers ran on."""
        return sorted(self._machines)
