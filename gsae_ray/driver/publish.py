"""What a launch shows of itself in MLflow: its run at the beginning, its frontier and numbers at the end."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gsae_ray.activations.production_log import Counters
from gsae_ray.driver.begin import Launch
from gsae_ray.driver.feature_pages import write_feature_pages
from gsae_ray.driver.inputs import inputs_of
from gsae_ray.driver.launch_page import show_launch
from gsae_ray.driver.prepare import PreparedSweep
from gsae_ray.driver.report import write_report
from gsae_ray.errors import UserError, first_line
from gsae_ray.results.comparison import own_saes
from gsae_ray.results.frontier import frontier
from gsae_ray.results.report.contents import title_of
from gsae_ray.results.report.records import settings_of
from gsae_ray.storage.launch_directory import finish_launch
from gsae_ray.tracking.connection import asking
from gsae_ray.tracking.credentials import redacted, redacted_in
from gsae_ray.tracking.mirror import Mirror
from gsae_ray.tracking.pages import page_of
from gsae_ray.tracking.run_names import run_names
from gsae_ray.tracking.session import Tracking
from gsae_ray.tracking.tags import JOB_VARIABLE

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Published:
    """What came of publishing a launch."""

    mirrored: bool
    """Whether MLflow has everything."""
    picture: Path | None
    """The frontier, if any trial finished."""
    failures: dict[str, str]
    """Trial -> why it failed."""


class Drawn(NamedTuple):
    """The frontier of a launch."""

    rows: pd.DataFrame | None
    """None: no trial came through."""
    picture: Path | None
    """None: none of the sweep's own is on it."""
    files: list[Path]
    """The picture, and all that was written beside it."""


def open_mirror(launch: Launch, uri: str) -> Mirror:
    """Opens MLflow, and the run of the launch with what is known of it before it trains.

    Raises:
        UserError: MLflow cannot be reached, or refuses it.
    """
    sweep = launch.prepared.sweep
    with asking(uri):
        names = run_names([trial.spec for trial in launch.trials])
        where = uri, sweep.experiment_name, launch.id
        mirror = Mirror(*where, launch.prepared.evaluation, names, inputs_of(launch.prepared), launch.stop_of)
        mirror.open_launch(sweep.name, _params(launch.prepared), os.environ.get(JOB_VARIABLE))
        mirror.log_launch({}, [launch.own_folder / "sweep.yaml", launch.own_folder / "versions.json"])
    return mirror


def _params(prepared: PreparedSweep) -> dict[str, Any]:
    """Returns the parameters of the launch's run."""
    source = prepared.source
    return {
        **source.params,
        "max_norm": prepared.sweep.dataset.max_norm,
        "trials": len(prepared.trials),
        "rows_per_block": prepared.layout.rows[0],
        "blocks": len(prepared.layout.rows),
        "heldout_rows": source.heldout_rows,
    }


def publish(launch: Launch, tracking: Tracking, uri: str, machines: list[str]) -> Published:
    """Publishes the frontier and the counters of a launch whose trials have ended, and marks it as finished.

    Where MLflow is not up to date, the frontier is drawn from storage, and the launch stays one to go on with.

    Args:
        launch: whose trials have ended.
        tracking: which has ended, too.
        uri: of MLflow.
        machines: the kinds that producers and trials ran on.
    """
    mirror, picture, last_error = tracking.mirror, None, tracking.last_error
    if last_error is None:  # else every further call would wait for a server that hangs
        _LOG.info("publishing the frontier")
        try:
            picture = _publish_to(mirror, launch, machines)
        except Exception as error:  # an MLflow server that is gone at the end loses nothing: storage has it
            _LOG.debug("publishing failed", exc_info=True)
            last_error = first_line(error)
    failures = failures_of(launch) | mirror.damaged
    if last_error is None and not failures and not launch.missing_features():
        finish_launch(launch.folder, launch.id, launch.driver.session)
    if last_error is not None:
        launch.log.say(
            f"MLflow at {redacted(uri)} is not up to date ({redacted_in(last_error, uri)}); nothing is lost: "
            "the same command with --resume brings it up to date"
        )
        picture = draw_frontier(launch, storage=launch.folder.parent).picture
    return Published(last_error is None, picture, failures)


def failures_of(launch: Launch) -> dict[str, str]:
    """Trial -> why it has failed for good, as storage has it."""
    status = {trial.name: trial.directory.status(launch.prepared.evaluation) for trial in launch.trials}
    return {name: found.failure for name, found in status.items() if found.failure is not None}


def _publish_to(mirror: Mirror, launch: Launch, machines: list[str]) -> Path | None:
    """Sends frontier and counters to the launch's run, which ends. Returns the picture, if there is one."""
    for line in mirror.send_references(launch.own_folder):
        launch.log.say(line)
    for line in write_feature_pages(launch.trials):
        launch.log.say(f"{line}; `gsae-ray features` writes it")
    mirror.send_features(launch.trials)
    mirror.send_ratings(launch.trials)
    uri = mirror.client.tracking_uri
    page = functools.partial(page_of, uri, mirror.experiment_id)
    drawn = draw_frontier(launch, page, tracking_uri=uri)
    log = [launch.log.path] if launch.log.path.exists() else []
    mirror.log_launch(_metrics(launch.counters()), [*log, *drawn.files], machines)
    if drawn.rows is not None:
        show_launch(mirror, launch, drawn.rows, drawn.files)
    for line in mirror.notices:
        launch.log.say(line)
    mirror.close("FINISHED")
    return drawn.picture


def _metrics(counters: Counters | None) -> dict[str, float]:
    """Returns the metrics of the launch's run."""
    if counters is None:
        return {}
    return {
        "forward_ratio": counters.forward_ratio,
        "rows_produced": counters.rows_produced,
        "rows_distinct": counters.rows_distinct,
        "rows_repeated": counters.rows_repeated,
        "peak_activation_bytes": counters.peak_bytes,
        "evaluations": counters.evaluations,
    }


def _no_page(_run_id: str) -> None:
    """The page of what was read from storage."""


def draw_frontier(launch: Launch, page: Callable[[str], str | None] = _no_page, **source: Any) -> Drawn:
    """Writes the frontier as a picture and as tables to the launch's folder, and the report of the launch.

    Args:
        launch: whose frontier it is.
        page: run -> the address of its page, if it has one.
        source: `tracking_uri` or `storage`, from which the results are read.
    """
    folder, experiment = launch.own_folder, launch.prepared.sweep.experiment_name
    pursuit: pd.DataFrame | None = None
    try:
        rows = frontier(experiment, launch=launch.id, **source)
        if launch.prepared.sweep.evaluation.pursuit_l0:
            pursuit = frontier(experiment, launch=launch.id, encoder="pursuit", **source)
    except UserError as error:  # no trial came through
        launch.log.say(str(error))
        return Drawn(None, None, [])
    for note in rows.attrs["notes"]:
        launch.log.say(note)
    if own_saes(rows).empty:
        return Drawn(rows, None, [])
    from gsae_ray.results import plots  # here: matplotlib takes a second to load

    picture = folder / "frontier.png"
    files = [folder / "frontier.csv", picture]
    rows.to_csv(folder / "frontier.csv", index=False)
    sweep = launch.prepared.sweep
    plots.save_frontier(rows, picture, pursuit, title_of(experiment, settings_of(sweep.model_dump()), rows))
    if pursuit is not None:
        files.append(folder / "pursuit.csv")
        pursuit.to_csv(files[-1], index=False)
    if (report := write_report(launch, rows, _metrics(launch.counters()), page)) is not None:
        files.append(report)
    return Drawn(rows, picture, files)
