"""Passwords: refused in the addresses of servers, which are printed and written down; kept in the environment."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
from urllib.parse import parse_qsl, urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from gsae_ray.errors import UserError

HTTP = ("http", "https")
_SECRET_KEY = re.compile(r"password|passwd|passphrase|pwd|secret|api_?key|token(?![a-z])", re.IGNORECASE)
_ODBC_SECRET = re.compile(r"(^|;)\s*(password|pwd)\s*=", re.IGNORECASE)
_AFTER_A_NAME = re.compile(r":(?!\d+([/?#,]|$))[^@&\]]+@")
"""What is no port, up to an @: for some parsers a `/`, `#` or `?` in a password ends what they look at before it."""


def refuse_password(address: str, option: str = "--tracking-uri") -> None:
    """An address is printed and written down, so no password may be in it.

    Raises:
        UserError: there is one, or it is no address. Neither tells what was given.
    """
    try:
        urlsplit(address)
    except ValueError:
        raise UserError(f"{option}: what was given is not an address (SCHEME://HOST:PORT)") from None
    if not _has_password(address):
        return
    if option == "--address":
        remedy = "put the cluster's token into ~/.ray/auth_token or RAY_AUTH_TOKEN"
    elif "://" in address and not address.strip().lower().startswith(HTTP):
        remedy = "give it as the database's client has it (PostgreSQL: PGPASSWORD or ~/.pgpass)"
    else:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    raise UserError(
        f"{option}: there is a password in the address, which is printed and written down; leave it out, and {remedy}"
    )


def _has_password(address: str) -> bool:
    """Whether an address may hold a password, for MLflow, SQLAlchemy or whoever reads it."""
    address = address.strip()  # as parsers do
    rest = address.partition("://")[2] or address
    parts = urlsplit(address)
    found = bool(parts.password)
    if parts.scheme in HTTP:  # of a server's address the name alone may be a token; a database's has its user there
        found |= bool(parts.username)
    elif parts.scheme:
        with contextlib.suppress(SQLAlchemyError, ValueError):
            found |= bool(make_url(address).password)
    path = address.startswith(("/", ".", "~")) or parts.scheme.partition("+")[0] in ("sqlite", "file")
    if not path:
        found |= _AFTER_A_NAME.search(rest) is not None
    values = parse_qsl(rest.partition("?")[2])
    return found or any(_SECRET_KEY.search(key) or _ODBC_SECRET.search(value) for key, value in values)


def has_login() -> bool:
    """Whether MLflow would log in: with a token, or a password of the environment or of ~/.mlflow/credentials.

    Raises:
        UserError: that file cannot be read.
    """
    from mlflow.utils.credentials import read_mlflow_creds  # here: MLflow takes seconds to import

    try:
        return bool(os.environ.get("MLFLOW_TRACKING_TOKEN") or read_mlflow_creds().password)
    except (configparser.Error, UnicodeDecodeError):  # it is not told: it quotes the file
        raise UserError(
            "~/.mlflow/credentials cannot be read: it has a line [mlflow], then mlflow_tracking_username = … and "
            "mlflow_tracking_password = …, with %% for a %"
        ) from None
