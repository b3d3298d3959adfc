"""A supervisor whose store lives in the test's process, and whose time the test tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trials import expand

from gsae_ray.activations.production_log import ProductionLog
from gsae_ray.activations.store import StoreReport, Wait
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.config.sections import TrialSettings
from gsae_ray.driver.stop import StopRequest
from gsae_ray.driver.supervisor import Supervisor
from gsae_ray.storage.driver_lock import Driver
from gsae_ray.storage.event_log import EventLog
from gsae_ray.storage.trial_directory import Attempt, Trial, TrialDirectory

HANG_TIMEOUT_S = 10
SPECS = expand(l1_coefficient=[1.0, 2.0])


class Store:
    """A `StoreControl` that keeps what it is told, and reports what the test sets."""

    def __init__(self) -> None:
        self.begun: list[tuple[Mapping[str, ReaderSpec], ProductionLog]] = []
        self.waits_for_begin = True
        self.error: Exception | None = None
        self.record = ProductionLog()
        self.waits: tuple[Wait, ...] = ()
        self.silent: dict[str, tuple[int, float]] = {}
        self.events: tuple[str, ...] = ()
        self.machines: frozenset[str] = frozenset()
        self.restarts = 0
        self.abandoned: list[tuple[str, bool]] = []
        self.killed: list[Attempt] = []

    def report(self) -> StoreReport | None:
        if self.error is not None:
            raise self.error
        if self.waits_for_begin:
            return None
        return StoreReport(self.record, self.waits, self.silent, self.events, self.machines)

    def begin(self, readers: Mapping[str, ReaderSpec], record: ProductionLog) -> None:
        self.begun.append((readers, record))
        self.waits_for_begin = False

    def restart(self) -> None:
        self.restarts += 1

    def abandon(self, trial: str, finished: bool) -> None:
        self.abandoned.append((trial, finished))

    def kill_trial(self, attempt: Attempt) -> None:
        self.killed.append(attempt)


class Watch:
    """A supervisor over two trials that are to be trained."""

    def __init__(self, folder: Path) -> None:
        (folder / "drivers").mkdir()
        self.folder = folder
        self.now = 0.0
        self.store = Store()
        self.trials = {spec.name: Trial(spec, TrialDirectory(folder / spec.directory_name)) for spec in SPECS}
        self.driver = Driver(folder / "drivers", 1)
        self.stop = StopRequest()
        self.shown: list[str] = []
        self.waits: tuple[Wait, ...] = ()
        self.supervisor = Supervisor(
            self.store,
            self.trials,
            {
                name: ReaderSpec.of(trial.spec.sites, trial.spec.training.trained_tokens)
                for name, trial in self.trials.items()
            },
            self.driver,
            folder / "record.json",
            TrialSettings(hang_timeout_s=HANG_TIMEOUT_S, room_timeout_s=100),
            self.stop,
            EventLog(folder / "events.jsonl", self.shown.append),
            self._show_waits,
            clock=lambda: self.now,
        )

    def _show_waits(self, waits: tuple[Wait, ...]) -> None:
        self.waits = waits

    def round(self, seconds: float = 1.0) -> None:
        """One round of the supervisor, some time after the one before."""
        self.now += seconds
        self.supervisor.round()

    def begin(self, name: str, session: int = 1) -> TrialDirectory:
        """An attempt of a trial begins."""
        directory = self.trials[name].directory
        directory.begin_attempt(self.trials[name].spec, session, pid=123, node="a node")
        return directory
