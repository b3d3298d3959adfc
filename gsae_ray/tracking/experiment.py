"""The experiment that a sweep is recorded in: checked before anything starts, found, made, and written to."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from gsae_ray.errors import UserError, first_line
from gsae_ray.names import folder_name
from gsae_ray.tracking.connection import PATIENCE_S, asking, connect, sqlite_file
from gsae_ray.tracking.credentials import HTTP, redacted
from gsae_ray.tracking.tags import SWEEP


def check(tracking_uri: str, experiment: str, writing: bool = True) -> None:
    """Checks that a sweep can be recorded, as far as that can be known without making anything.

    Args:
        tracking_uri: of the store.
        experiment: the experiment that the sweep is to be recorded in.
        writing: whether the login that is here is the one that the sweep is run with.

    Raises:
        UserError: it cannot be reached, or takes no writes.
    """
    path = sqlite_file(tracking_uri)
    if path is not None and not (path.exists() and path.stat().st_size):  # it is made beside the rest
        _check_takes_files(path.parent)
        return
    client = connect(tracking_uri)
    if not writing:
        return
    with asking(tracking_uri):
        found = client.get_experiment_by_name(experiment)
    location = new_artifacts(tracking_uri, experiment) if found is None else found.artifact_location
    if location is not None:
        check_artifacts(tracking_uri, location)
    if path is not None:
        _check_takes_writes(path)
    elif found is not None and found.lifecycle_stage == "active":
        _check_permission(client, found)


def reserve(tracking_uri: str, experiment: str) -> None:
    """Makes the experiment on a server, if there is none yet: only so it is known that this login may write to it.

    Raises:
        UserError: it may not.
    """
    if urlsplit(tracking_uri).scheme in HTTP:
        client = connect(tracking_uri)
        with asking(tracking_uri):
            found = open_experiment(client, experiment)
        check_artifacts(tracking_uri, found.artifact_location)
        _check_permission(client, found)


def _check_permission(client: MlflowClient, experiment: Experiment) -> None:
    """Writes a tag to an experiment, which fails where this login may not write to it."""
    with asking(client.tracking_uri):
        client.set_experiment_tag(experiment.experiment_id, SWEEP, experiment.name)


def open_experiment(client: MlflowClient, name: str) -> Experiment:
    """The experiment of that name: found, taken back if it was deleted, or made."""
    found = client.get_experiment_by_name(name) or make_experiment(client, name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found


def make_experiment(client: MlflowClient, name: str) -> Experiment:
    """A new experiment, or the one that another driver has made meanwhile."""
    try:
        location = new_artifacts(client.tracking_uri, name)
        return client.get_experiment(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # made by another sweep at the same moment, or by this one and the reply was lost
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found


def new_artifacts(tracking_uri: str, experiment: str) -> str | None:
    """Where the artifacts of a new experiment go: beside the file of an SQLite store; None: where the server says."""
    path = sqlite_file(tracking_uri)
    return None if path is None else (path.parent / "mlruns" / folder_name(experiment)).as_uri()


def check_artifacts(tracking_uri: str, location: str) -> None:
    """Checks that artifacts can be written to where a store wants them; a local path is written by this process.

    Raises:
        UserError: a server names a path of this machine, or the folder takes no files.
    """
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return
    if urlsplit(tracking_uri).scheme in HTTP:
        raise UserError(
            f"--tracking-uri: the MLflow server at {redacted(tracking_uri)!r} wants artifacts written to {location!r}, "
            "a path of this machine that a server may not choose; start it with --artifacts-destination (and without "
            "--no-serve-artifacts), and give the sweep a new experiment there (experiment: NAME)"
        )
    _check_takes_files(Path(url2pathname(parts.path)))


def _check_takes_files(folder: Path) -> None:
    """Checks that a file can be made in a folder, or in the nearest folder above where it is still to be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"--tracking-uri: {there} takes no files of MLflow ({error.strerror}); make it writable for this user, or "
            "give another place: --tracking-uri sqlite:///PATH/mlflow.db"
        ) from error


def _check_takes_writes(path: Path) -> None:
    """Checks that an SQLite file can be written to, with a transaction that is rolled back."""
    try:
        with contextlib.closing(sqlite3.connect(path, PATIENCE_S, isolation_level=None)) as database:
            for statement in ("BEGIN IMMEDIATE", "CREATE TABLE gsae_probe (x)", "ROLLBACK"):
                database.execute(statement)
    except sqlite3.Error as error:
        raise UserError(
            f"--tracking-uri: {path} takes no writes ({first_line(error)}); make it and its folder writable for this "
            "user, or give another place: --tracking-uri sqlite:///PATH/mlflow.db"
        ) from error
