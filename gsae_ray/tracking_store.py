"""Where MLflow records: an SQLite file, a database or a server, and whether it can be worked with."""

from __future__ import annotations

import configparser
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import read_mlflow_creds
from sqlalchemy.exc import SQLAlchemyError

from gsae_ray.addresses import HTTP, refuse_password
from gsae_ray.errors import UserError, first_line


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


def check(tracking_uri: str) -> None:
    """Whether MLflow can be written to, without writing: an SQLite file is not made yet.

    Raises:
        UserError: the server cannot be reached, or the address means nothing to MLflow.
    """
    if not _is_file_in_a_folder(tracking_uri):
        connect(tracking_uri)


def _is_file_in_a_folder(tracking_uri: str) -> bool:
    """Whether it is an SQLite store; a missing folder would be made by MLflow, wherever the typo points."""
    if not tracking_uri.startswith("sqlite:///"):
        return False
    folder = Path(tracking_uri.removeprefix("sqlite:///")).parent
    if not folder.is_dir():
        raise UserError(f"--tracking-uri: {tracking_uri}: there is no such folder; make {folder} first")
    return True


def connect(tracking_uri: str) -> MlflowClient:
    """A client of a store that answers. An SQLite file is made where there is none.

    Raises:
        UserError: the server cannot be reached, or the address means nothing to MLflow.
    """
    refuse_password(tracking_uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _is_file_in_a_folder(tracking_uri)
    if urlsplit(tracking_uri).scheme in HTTP:
        has_login()  # a file that cannot be read is told of
    try:
        with quick_failure(timeout_s=10):
            client = MlflowClient(tracking_uri=tracking_uri)
            client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:  # a database needs its client
        reason = first_line(error)[:200]
        what = f"the MLflow server at {tracking_uri!r} does not answer ({reason}); start it"
        if urlsplit(tracking_uri).scheme not in HTTP:
            what = (
                f"{tracking_uri!r} cannot be opened ({reason}); mend that (a database needs its client installed here)"
            )
        raise UserError(
            f"--tracking-uri: {what}, or leave --tracking-uri and MLFLOW_TRACKING_URI out to record in ./mlflow.db"
        ) from error
    return client
