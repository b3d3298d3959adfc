"""Where MLflow records: an SQLite file, a database or a server, and whether it can be worked with."""

from __future__ import annotations

import configparser
import contextlib
import logging
import os
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import read_mlflow_creds
from sqlalchemy.engine import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from gsae_ray.errors import UserError, first_line
from gsae_ray.names import folder_name
from gsae_ray.tracking.addresses import HTTP, refuse_password

SWEEP = "gsae.sweep"
"""The tag of an experiment and of a launch's run: the sweep's name."""
PATIENCE_S = 15
"""Without an answer for so long a server is said to be away."""
_ELSEWHERE = "or leave --tracking-uri and MLFLOW_TRACKING_URI out to record in ./mlflow.db"


def resolve_uri(tracking_uri: str | None) -> str:
    """`--tracking-uri`, else MLFLOW_TRACKING_URI, else an SQLite file in the working directory. Always absolute.

    Raises:
        UserError: see `refuse_password`.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    refuse_password(uri)
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def has_login() -> bool:
    """Whether MLflow would log in: with a token, or a password of the environment or of ~/.mlflow/credentials.

    Raises:
        UserError: that file cannot be read.
    """
    try:
        return bool(os.environ.get("MLFLOW_TRACKING_TOKEN") or read_mlflow_creds().password)
    except (configparser.Error, UnicodeDecodeError):  # it is not told: it quotes the file
        raise UserError(
            "~/.mlflow/credentials cannot be read: it has a line [mlflow], then mlflow_tracking_username = … and "
            "mlflow_tracking_password = …, with %% for a %"
        ) from None


@contextlib.contextmanager
def quick_failure(timeout_s: int = 30) -> Iterator[None]:
    """Within the context a server that refuses is an error at once, one that hangs after `timeout_s`.

    MLflow itself would try for minutes at every call, with the sweep's end or a Ctrl-C waiting for it; and it would
    send again what makes a run, although only the reply may have been lost. The mirror asks first, then tries again.
    What the user has set stays.
    """
    names = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: value for name, value in names.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def check(tracking_uri: str, experiment: str, writing: bool = True) -> None:
    """Whether a sweep can be recorded there, as far as can be known without making anything.

    Args:
        experiment: where the sweep is to be recorded.
        writing: the sweep is run with the login that is here.
    Raises:
        UserError: it cannot be reached, or takes no writes.
    """
    path = _file(tracking_uri)
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
    """Has a server make the experiment, if there is none yet: only that tells whether it may be made and written to.

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
    """Whether an experiment may be written to."""
    with asking(client.tracking_uri):
        client.set_experiment_tag(experiment.experiment_id, SWEEP, experiment.name)


def open_experiment(client: MlflowClient, name: str) -> Experiment:
    """The experiment of that name: found, taken back if it was deleted, or made."""
    found = client.get_experiment_by_name(name) or make_experiment(client, name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found


def make_experiment(client: MlflowClient, name: str) -> Experiment:
    """A new experiment, or the one that has come to be meanwhile."""
    try:
        location = new_artifacts(client.tracking_uri, name)
        return client.get_experiment(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # made by another sweep at the same moment, or by this one and the reply was lost
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found


def new_artifacts(tracking_uri: str, experiment: str) -> str | None:
    """Where the artifacts of a new experiment go: of an SQLite store beside the file, wherever the driver runs.

    None: where the server says.
    """
    path = _file(tracking_uri)
    return None if path is None else (path.parent / "mlruns" / folder_name(experiment)).as_uri()


def check_artifacts(tracking_uri: str, location: str) -> None:
    """Whether artifacts can be written to where a store wants them, which for a local path is done by this process.

    Raises:
        UserError: a server names a path of this machine, or the folder takes no files.
    """
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return
    if urlsplit(tracking_uri).scheme in HTTP:
        raise UserError(
            f"--tracking-uri: the MLflow server at {tracking_uri!r} wants artifacts written to {location!r}, a path of "
            "this machine that a server may not choose; start it with --artifacts-destination (and without "
            "--no-serve-artifacts), and give the sweep a new experiment there (experiment: NAME)"
        )
    _check_takes_files(Path(url2pathname(parts.path)))


def _check_takes_files(folder: Path) -> None:
    """Whether a file can be made there; in the folder that is to be made, in the nearest above."""
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
    """Whether an SQLite file can be written to; nothing stays of what is."""
    try:
        with contextlib.closing(sqlite3.connect(path, PATIENCE_S, isolation_level=None)) as database:
            for statement in ("BEGIN IMMEDIATE", "CREATE TABLE gsae_probe (x)", "ROLLBACK"):
                database.execute(statement)
    except sqlite3.Error as error:
        raise UserError(
            f"--tracking-uri: {path} takes no writes ({first_line(error)}); make it and its folder writable for this "
            "user, or give another place: --tracking-uri sqlite:///PATH/mlflow.db"
        ) from error


def _file(tracking_uri: str) -> Path | None:
    """That of an SQLite store; None for others. A missing folder would be made by MLflow, wherever the typo points.

    Raises:
        UserError: there is no such folder, or it is one itself.
    """
    if not tracking_uri.startswith("sqlite:///"):
        return None
    path = Path(tracking_uri.removeprefix("sqlite:///"))
    if path.is_dir():
        raise UserError(f"--tracking-uri: {path} is a folder; give a file: sqlite:///{path / 'mlflow.db'}")
    if not path.parent.is_dir():
        raise UserError(f"--tracking-uri: {tracking_uri}: there is no such folder; make {path.parent} first")
    return path


def open_tracking(tracking_uri: str | None) -> MlflowClient:
    """A client of a store that has been recorded to.

    Raises:
        UserError: nothing has been recorded there, or the server does not answer.
    """
    uri = resolve_uri(tracking_uri)
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        raise UserError(
            f"--tracking-uri: nothing has been recorded at {path}; go to the folder where the sweep ran, or give "
            "--tracking-uri"
        )
    return connect(uri)


def connect(tracking_uri: str) -> MlflowClient:
    """A client of a store that answers. An SQLite file is made where there is none.

    Raises:
        UserError: the server cannot be reached, or the address means nothing to MLflow.
    """
    refuse_password(tracking_uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.exceptions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    path = _file(tracking_uri)
    if urlsplit(tracking_uri).scheme in HTTP:
        has_login()  # a file that cannot be read is told of
    with asking(tracking_uri):
        if path is None or path.exists():
            _try_once(tracking_uri, path)
        client = MlflowClient(tracking_uri=tracking_uri)
        client.search_experiments(max_results=1)
    return client


def _try_once(tracking_uri: str, path: Path | None) -> None:
    """Whether a database can be opened. Where it cannot, MLflow would try for minutes, and say so after the last.

    Args:
        path: of an SQLite store.
    """
    if path is not None:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
    elif urlsplit(tracking_uri).scheme.partition("+")[0] in DATABASE_ENGINES:
        url = make_url(tracking_uri)
        if url.host and url.port:  # a host that is silent is not waited for as long as the system does
            socket.create_connection((url.host, url.port), PATIENCE_S).close()
        engine = create_engine(url)
        engine.connect().close()
        engine.dispose()


@contextlib.contextmanager
def asking(tracking_uri: str) -> Iterator[None]:
    """Within the context whatever MLflow, a database or the network says against a request is one line.

    Raises:
        UserError: the store cannot be reached, wants another login, or refuses what is asked of it.
    """
    try:
        with quick_failure(PATIENCE_S):
            yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, ImportError, OSError, ValueError) as error:
        raise UserError(f"--tracking-uri: {_explain(tracking_uri, error)}") from error


def _explain(tracking_uri: str, error: BaseException) -> str:
    """What is wrong, and what would be right."""
    cause = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    if urlsplit(tracking_uri).scheme not in HTTP:
        if tracking_uri.startswith("file:") or Path(tracking_uri).is_dir():
            return (
                f"{tracking_uri!r} is a folder, to which MLflow does not record; give a file: sqlite:///PATH/mlflow.db"
            )
        return (
            f"{tracking_uri!r} cannot be used ({first_line(cause)[:200]}); mend that (a database needs its client "
            f"here), {_ELSEWHERE}"
        )
    reason = first_line(error)[:200]
    server = f"the MLflow server at {tracking_uri!r}"
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
    if status == HTTPStatus.UNAUTHORIZED:
        return (
            f"{server} {'refuses the login' if has_login() else 'wants a login'}; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or write them into ~/.mlflow/credentials"
        )
    if status == HTTPStatus.FORBIDDEN:
        return (
            f"{server} does not permit that to this login ({reason}); have its permission changed, or give the sweep "
            "an experiment of its own (experiment: NAME)"
        )
    if isinstance(cause, MlflowException):
        return f"{server} does not do what it is asked for ({reason}); is it one of MLflow {mlflow.__version__}?"
    return f"{server} does not answer ({first_line(cause)[:200]}); start it, {_ELSEWHERE}"
