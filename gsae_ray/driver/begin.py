"""The beginning of a launch: what is left to do is found out, the cluster is joined, and the launch is written down."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from gsae_ray.activations.production_log import PRODUCTION_LOG, Counters, damage_of_log
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.driver import cluster_nodes
from gsae_ray.driver.display import Display
from gsae_ray.driver.missing_features import missing_features
from gsae_ray.driver.prepare import PreparedSweep
from gsae_ray.driver.ray_session import connected
from gsae_ray.driver.resources import ResourceRequest, request_resources
from gsae_ray.evaluation.feature_statistics import Looked
from gsae_ray.files import disk_space_needed
from gsae_ray.storage import references
from gsae_ray.storage.driver_lock import Driver, driver_lock
from gsae_ray.storage.event_log import EventLog
from gsae_ray.storage.launch_directory import (
    Resume,
    begin_launch,
    check_resume,
    trial_folder,
    write_request,
)
from gsae_ray.storage.references import Reference
from gsae_ray.storage.stopped import Stop, StoppedTrials
from gsae_ray.storage.trial_directory import Trial, TrialDirectory, forget_damaged
from gsae_ray.tracking.connection import quick_failure
from gsae_ray.tracking.experiment import reserve

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Launch:
    """A launch that has begun: what all of its steps need to know."""

    prepared: PreparedSweep
    id: str
    folder: Path
    """The sweep's folder in storage."""
    driver: Driver
    """This driver's hold on that folder."""
    trials: list[Trial]
    pending: list[Trial]
    """Those that are to be trained, or to be evaluated."""
    references: list[Reference]
    """SAEs from elsewhere that are to be evaluated."""
    readers: dict[str, ReaderSpec]
    """Those that are to be trained, by name, as the store knows them."""
    resources: ResourceRequest
    stopped: StoppedTrials
    """Those that the launch's scheduler has stopped; none where it has no scheduler."""
    display: Display
    log: EventLog

    lacks_features: bool
    """Whether tables of features of SAEs that were finished before are missing."""

    @property
    def has_work(self) -> bool:
        """Whether there is anything to train, to evaluate or to look at."""
        return bool(self.pending or self.references or self.lacks_features)

    def missing_features(self) -> tuple[Looked, ...]:
        """Returns the finished SAEs whose tables of features are asked for and missing."""
        return _missing_features(self.prepared, self.trials)

    @property
    def own_folder(self) -> Path:
        """The launch's folder in storage."""
        return _own_folder(self.folder, self.id)

    @property
    def record_path(self) -> Path:
        """The file with what was produced for this launch."""
        return _record_path(self.own_folder)

    def counters(self) -> Counters | None:
        """Returns what was produced for this launch, in all of its sessions; None where nothing was."""
        record = PRODUCTION_LOG.read_whole(self.record_path)
        return None if record is None else Counters.of(record, self.prepared.layout)

    def stop_of(self, trial: str) -> Stop | None:
        """Returns why the scheduler has stopped a trial, if so; without a scheduler storage is not asked."""
        return self.stopped.get(trial) if self.prepared.sweep.scheduler.stop_dominated else None

    def is_stopped(self, trial: str) -> bool:
        """Returns whether the scheduler has stopped a trial."""
        return self.stop_of(trial) is not None

    def is_ours(self) -> bool:
        """Returns whether no other driver has taken the sweep over."""
        return not self.driver.replaced_by


def _missing_features(prepared: PreparedSweep, trials: Sequence[Trial]) -> tuple[Looked, ...]:
    settings = prepared.sweep.evaluation.features
    return () if settings is None else missing_features(trials, settings, prepared.evaluation.fingerprint)


def _own_folder(folder: Path, launch_id: str) -> Path:
    return folder / "launches" / launch_id


def _record_path(own_folder: Path) -> Path:
    return own_folder / "record.json"


@contextlib.contextmanager
def begin(
    prepared: PreparedSweep,
    folder: Path,
    display: Display,
    *,
    tracking_uri: str,
    address: str | None,
    resume: Resume,
    overrides: Sequence[str],
) -> Iterator[Launch]:
    """Begins a launch, or goes on with one, and holds what it needs for the length of the context.

    That is the lock on the sweep's folder and, where there is anything to do, a connection to Ray. What is wrong is
    found before the launch is written down.

    Args:
        prepared: the sweep.
        folder: its folder in storage.
        display: where lines for the user go.
        tracking_uri: of MLflow.
        address: as for `driver.launch.run`.
        resume: as there.
        overrides: as there; they are written down for whoever resumes.

    Raises:
        UserError: another driver runs the sweep, there is nothing to resume, or the sweep does not fit the cluster.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk_space_needed(folder))
        stack.enter_context(quick_failure())
        driver = stack.enter_context(driver_lock(folder, display.phase if resume == "auto" else None))
        trials = [Trial(spec, TrialDirectory(trial_folder(folder, spec))) for spec in prepared.trials]
        damaged = forget_damaged(trial.directory for trial in trials)
        for line in damaged:
            display.phase(line)
        resumed = check_resume(folder, prepared.sweep, prepared.trials, resume)
        before = None if resumed is None else StoppedTrials(resumed)
        pending = _what_is_left(prepared, trials, resume, display, before)
        readers = {
            trial.name: ReaderSpec.of(trial.spec.sites, trial.spec.training.trained_tokens)
            for trial in pending
            if not trial.directory.done
        }
        left = [
            reference
            for reference in prepared.references
            if references.lacks_evaluation(folder.parent, reference, prepared.evaluation.fingerprint)
        ]
        lacks_features = bool(_missing_features(prepared, trials))
        reserve(tracking_uri, prepared.sweep.experiment_name)
        resources = ResourceRequest()
        if pending or left or lacks_features:
            _LOG.info("connecting to Ray")
            stack.enter_context(connected(address))
            cluster_nodes.check_shared(folder)
            resources = request_resources(prepared, readers)
            _LOG.info("the sweep fits the cluster: %.1f GiB of activations are kept", resources.budget_bytes / 2**30)
        launch_id, notices = begin_launch(folder, prepared.sweep, prepared.trials, resume, overrides)
        own_folder = _own_folder(folder, launch_id)
        notices += damage_of_log(_record_path(own_folder))
        write_request(own_folder, prepared.evaluation)
        for reference in prepared.references:
            references.add_reference(own_folder, reference)
        log = EventLog(own_folder / "events.jsonl", display.phase)
        stack.enter_context(log.session(f"{len(pending)} of {len(trials)} trials to train or to evaluate"))
        for line in damaged:
            log.say(line, show=False)
        for notice in (*notices, *resources.notices):
            log.say(notice)
        yield Launch(
            prepared,
            launch_id,
            folder,
            driver,
            trials,
            pending,
            left,
            readers,
            resources,
            StoppedTrials(own_folder),
            display,
            log,
            lacks_features,
        )


def _what_is_left(
    prepared: PreparedSweep, trials: Sequence[Trial], resume: Resume, display: Display, stopped: StoppedTrials | None
) -> list[Trial]:
    """Returns the trials that are to be trained or to be evaluated, and tells of the others.

    Args:
        prepared: the sweep.
        trials: all of it.
        resume: as for `begin`.
        display: where lines for the user go.
        stopped: those that the launch which is gone on with has stopped before.
    """
    status = {trial.name: trial.directory.status(prepared.evaluation) for trial in trials}
    left = [trial for trial in trials if not status[trial.name].done]
    if len(left) < len(trials):
        display.phase(f"{len(trials) - len(left)} of {len(trials)} trials are done already")
    if stopped is not None and (ended := [t for t in left if not status[t.name].trained and t.name in stopped]):
        display.phase(f"{len(ended)} of {len(trials)} trials were stopped by the scheduler before, and stay so")
        left = [trial for trial in left if trial not in ended]
    if resume == "auto" and (failed := sum(status[trial.name].failure is not None for trial in left)):
        display.phase(f"{failed} of {len(trials)} trials failed for good before; --resume tries them again")
        left = [trial for trial in left if status[trial.name].failure is None]
    if without := sum(map(_is_past_snapshots, trials)):
        display.phase(
            f"training.snapshots_at: {without} of {len(trials)} trials have come past a snapshot that they do not "
            "have; they are not trained again for it"
        )
    return left


def _is_past_snapshots(trial: Trial) -> bool:
    """Returns whether a trial lacks a snapshot that its training does not come past any more."""
    directory, asked = trial.directory, trial.spec.training.snapshots_at
    if not asked:
        return False
    there, done, furthest = directory.snapshots.tokens(), directory.done, directory.newest_checkpoint
    batch_size = trial.spec.training.batch_size
    return any(t not in there and (done or furthest >= t // batch_size * batch_size) for t in asked)
