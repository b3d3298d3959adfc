"""Connecting to where MLflow records: an SQLite file, a database or a server; its errors as one line each."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from gsae_ray.errors import UserError, first_line
from gsae_ray.tracking.credentials import HTTP, has_login, redacted, redacted_in, refuse_password

PATIENCE_S = 15
"""Seconds without an answer after which a server counts as away."""
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


@contextlib.contextmanager
def quick_failure(timeout_s: int = 30) -> Iterator[None]:
    """A context in which a server that refuses is an error at once, and one that hangs after `timeout_s`.

    MLflow itself would try for minutes at every call, and the sweep's end or a Ctrl-C would have to wait for it. It
    would also send a request again whose reply was lost, and so make a run twice; the mirror asks before it tries
    again. Settings that the user has made stay.
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


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of an SQLite store; None for other stores.

    MLflow would make a folder that is missing, wherever a typo points.

    Raises:
        UserError: the file's folder does not exist, or the path is that of a folder.
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
    path = sqlite_file(tracking_uri)
    if urlsplit(tracking_uri).scheme in HTTP:
        has_login()  # raises where the file of logins cannot be read
    with asking(tracking_uri):
        if path is None or path.exists():
            _try_once(tracking_uri, path)
        client = MlflowClient(tracking_uri=tracking_uri)
        client.search_experiments(max_results=1)
    return client


def _try_once(tracking_uri: str, path: Path | None) -> None:
    """Opens a database once. Where it cannot be opened, MLflow would try for minutes before it says so.

    Args:
        tracking_uri: of the store.
        path: of its file, if it is an SQLite store.
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
    """A context in which a request that fails, whatever of MLflow, database or network it fails in, is one line.

    Raises:
        UserError: the store cannot be reached, wants another login, or refuses what is asked of it.
    """
    try:
        with quick_failure(PATIENCE_S):
            yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, ImportError, OSError, ValueError) as error:
        raise UserError(f"--tracking-uri: {_explain(tracking_uri, error)}") from error


def is_away(error: MlflowException) -> bool:
    """Whether a request failed since the server cannot be asked just now, and not since it refuses what was asked."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):  # those of connections and of time that has run out are among them
            return True
        cause = cause.__cause__ or cause.__context__
    busy = HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT
    return error.get_http_status_code() in busy


def _explain(tracking_uri: str, error: BaseException) -> str:
    """Why a store cannot be worked with, and what to do about it."""

    def quoted(error: BaseException) -> str:
        return redacted_in(first_line(error), tracking_uri)[:200]

    where, cause = redacted(tracking_uri), error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    if urlsplit(tracking_uri).scheme not in HTTP:
        if tracking_uri.startswith("file:") or Path(tracking_uri).is_dir():
            return f"{where!r} is a folder, to which MLflow does not record; give a file: sqlite:///PATH/mlflow.db"
        if not urlsplit(tracking_uri).scheme and tracking_uri.endswith(".db") and "@" not in tracking_uri:
            return f"{where!r} is a path, and no address; give sqlite:///{Path(tracking_uri).absolute()}"
        return f"{where!r} cannot be used ({quoted(cause)}); mend that (a database needs its client here), {_ELSEWHERE}"
    reason, server = quoted(error), f"the MLflow server at {where!r}"
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
    return f"{server} does not answer ({quoted(cause)}); start it, {_ELSEWHERE}"
