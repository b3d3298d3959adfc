"""A launch, from a sweep file to its frontier, as a row of steps."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gsae_ray.config.load import load_sweep
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.begin import Launch, begin
from gsae_ray.driver.display import Display, describe_states
from gsae_ray.driver.prepare import prepare
from gsae_ray.driver.publish import Published, draw_frontier, failures_of, open_mirror, publish
from gsae_ray.driver.start_actors import running_actors
from gsae_ray.driver.stop import is_interactive, stopped_by_signals
from gsae_ray.driver.sweep_result import SweepResult as SweepResult
from gsae_ray.driver.sweep_result import describe_end as describe_end
from gsae_ray.driver.trials import TrialRunner
from gsae_ray.errors import StopAskedError, SweepStoppedError
from gsae_ray.files import disk_space_needed
from gsae_ray.names import local_path
from gsae_ray.storage.launch_directory import Resume, recorded_overrides
from gsae_ray.storage.progress import STATES, ProgressReader
from gsae_ray.tracking.connection import resolve_uri
from gsae_ray.tracking.experiment import check as check_tracking
from gsae_ray.tracking.session import Tracking

_LOG = logging.getLogger(__name__)


def run(
    sweep: str | Path | Sweep,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    tracking_uri: str | None = None,
    storage: str | Path | None = None,
    resume: Resume = False,
    console: Console | None = None,
) -> SweepResult:
    """Runs a sweep: trains and evaluates every trial that is not done yet, and brings MLflow up to date.

    Args:
        sweep: a sweep file, or a `Sweep`.
        overrides: `path.to.key=value`, for a sweep file.
        address: of a Ray cluster; default: RAY_ADDRESS, or a local one that ends with the sweep.
        tracking_uri: of MLflow; default: MLFLOW_TRACKING_URI, or `mlflow.db` in the working directory.
        storage: where trials keep their state; default: `gsae_runs` in the working directory.
        resume: go on with the newest launch of this sweep in the storage, instead of beginning another; it keeps the
            overrides that it was begun with. `"auto"`, for what starts a command again when it has ended: go on with
            the newest launch that is not finished, where there is one and the sweep is the same; else begin one. Trials
            that have failed for good are left so.
        console: where progress goes; default: standard error.

    Returns:
        what the launch came to. In a notebook, or at Python's prompt, that is so at an interrupt too, once the launch
        has begun: trials save a checkpoint, what is finished is on `.frontier()`, and `resume=True` goes on. A second
        interrupt is a KeyboardInterrupt, as it is in a script at once.

    Raises:
        UserError: something is wrong with the sweep or its surroundings; no trial was started.
        SweepStoppedError: the sweep cannot go on for now (the language model cannot be run, storage is full, trials
            find no free resources, another driver has taken over, somebody has asked for it); what is finished is kept,
            and `resume` goes on.
    """
    started = time.monotonic()
    root = local_path("gsae_runs" if storage is None else storage, "--storage").resolve()
    if not isinstance(sweep, Sweep):
        file, sweep = sweep, load_sweep(sweep, overrides)
        if resume is True and (recorded := recorded_overrides(root / sweep.name)):
            overrides = [*recorded, *overrides]
            sweep = load_sweep(file, overrides)
    uri = resolve_uri(tracking_uri)
    check_tracking(uri, sweep.experiment_name)
    display = Display(console or Console(stderr=True))
    display.phase(f"checking {sweep.name}: {sweep.source}")
    prepared = prepare(sweep, root, display.phase, uri)
    _LOG.info("%d trials, %d blocks of activations", len(prepared.trials), len(prepared.layout.rows))
    folder = root / sweep.name
    with begin(
        prepared, folder, display, tracking_uri=uri, address=address, resume=resume, overrides=overrides
    ) as launch:
        try:
            with disk_space_needed(folder):
                return _run(launch, uri, started)
        except (KeyboardInterrupt, StopAskedError):
            if not is_interactive():
                raise
            return _interrupted(launch, uri, started)
        except OSError as error:  # not a mistake to mend, as before the launch began
            raise SweepStoppedError(
                f"{error.filename or folder}: {error.strerror or error}; what was saved before is whole: the same "
                "command with --resume goes on"
            ) from error


def _run(launch: Launch, uri: str, started: float) -> SweepResult:
    """Has what is pending trained and evaluated beside MLflow, and publishes the frontier."""
    for trial in launch.pending:
        trial.directory.forget_failure()
    reader = ProgressReader(launch.trials, launch.prepared.evaluation, is_stopped=launch.is_stopped)
    with Tracking(
        open_mirror=lambda: open_mirror(launch, uri),
        trials=launch.trials,
        progress=functools.partial(_progress, launch, reader) if launch.has_work else None,
        allowed=launch.is_ours,
    ) as tracking:
        if launch.has_work:
            machines = _train(launch, tracking, reader, uri)
        else:
            machines = []
            tracking.start_mirroring()
    states = [trial.state for trial in reader.update()]
    counts = describe_states({state: states.count(state) for state in STATES})
    launch.log.say(f"trials: {counts}", show=False)
    return _result(launch, publish(launch, tracking, uri, machines), uri, started)


def _interrupted(launch: Launch, uri: str, started: float) -> SweepResult:
    """What was finished of a launch that somebody has interrupted, as storage has it."""
    launch.log.say("interrupted: finished trials and checkpoints are kept; run(…, resume=True) goes on")
    published = Published(False, draw_frontier(launch, storage=launch.folder.parent).picture, failures_of(launch))
    return _result(launch, published, uri, started, interrupted=True)


def _result(launch: Launch, published: Published, uri: str, started: float, interrupted: bool = False) -> SweepResult:
    counters = launch.counters()
    return SweepResult(
        experiment=launch.prepared.sweep.experiment_name,
        launch_id=launch.id,
        tracking_uri=uri,
        storage=launch.folder.parent,
        mirrored=published.mirrored,
        picture=published.picture,
        failures=published.failures,
        forward_ratio=counters.forward_ratio if counters else float("nan"),
        repeated_rows=counters.rows_repeated if counters else 0,
        seconds=time.monotonic() - started,
        interrupted=interrupted,
    )


def _train(launch: Launch, tracking: Tracking, reader: ProgressReader, uri: str) -> list[str]:
    """Starts producers and store, and has every pending trial trained and evaluated, and every pending reference.

    Returns:
        the kinds of machines that producers and trials ran on.

    Raises:
        SweepStoppedError: the launch cannot go on, or was asked to stop.
        UserError: the model or MLflow cannot be opened.
    """
    with stopped_by_signals() as stop, running_actors(launch, stop, tracking.check) as actors:
        tracking.start_mirroring(stop.check)
        if (page := tracking.mirror.page) is not None:
            launch.display.phase(f"MLflow: {page}")
        stop.check()
        with launch.display.following(reader):
            TrialRunner(launch, actors, uri).run()
    return actors.supervisor.machines


def _progress(launch: Launch, reader: ProgressReader) -> dict[str, Any]:
    """Returns how far the launch is: `Progress` and its forward ratio, as JSON.

    All of it is read from storage, so it is there before the supervisor is, and without it. The ratio is as old as the
    record of productions there: a second or two.
    """
    reader.update()
    counters = launch.counters()
    ratio = counters.forward_ratio if counters is not None and counters.rows_distinct else None
    return {**dataclasses.asdict(launch.display.progress(reader)), "forward_ratio": ratio}
