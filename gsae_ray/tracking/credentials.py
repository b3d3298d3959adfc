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
SECRET_KEYS = ("password", "passwd", "pwd", "sslpassword", "secret", "token", "access_token", "api_key")
"""Names of parameters in an address's query whose values are passwords."""


def refuse_password(address: str, option: str = "--tracking-uri") -> None:
    """Refuses an address with a password, since addresses are printed and written down.

    Raises:
        UserError: there is one, or it is no address. The message does not repeat what was given.
    """
    address = address.strip()
    try:
        parts = urlsplit(address)
        if parts.scheme in HTTP:
            _ = parts.port  # a password with a `/` in it is one that is no number
    except ValueError:
        raise UserError(f"{option}: what was given is not an address (SCHEME://HOST:PORT)") from None
    if not _has_password(address):
        return
    if option == "--endpoint":
        remedy = "name the environment variable that has the key: --api-key-env"
    elif option == "--address":
        remedy = "put the cluster's token into ~/.ray/auth_token or RAY_AUTH_TOKEN"
    elif parts.scheme in HTTP:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    else:
        remedy = "give it as the database's client has it (PostgreSQL: PGPASSWORD or ~/.pgpass)"
    raise UserError(
        f"{option}: there is a password in the address, which is printed and written down; leave it out, and {remedy}"
    )


def _has_password(address: str) -> bool:
    """Whether a URL parser finds a password in an address, or a query key of `SECRET_KEYS`."""
    parts = urlsplit(address)
    if parts.password or any(key.lower() in SECRET_KEYS for key, _ in parse_qsl(parts.query)):
        return True
    if parts.scheme in HTTP:
        return bool(parts.username)  # it may be a token
    with contextlib.suppress(SQLAlchemyError, ValueError):
        return bool(make_url(address).password)  # of a database, where a password may have a `/`, `#` or `?`
    return False


def redacted(address: str) -> str:
    """An address as it is printed: without user names, passwords and the values of its query."""
    return redacted_in(address, address)


def redacted_in(text: str, address: str) -> str:
    """A text that may quote an address, or parts of it, without what `redacted` leaves out of that address."""
    if address.startswith("sqlite:///"):
        return text
    place, _, query = address.partition("?")
    secrets = dict.fromkeys(re.findall(r"[^/@]+@", place), "***@") | dict.fromkeys(re.findall(r"=[^&]+", query), "=***")
    for secret in sorted(secrets, key=len, reverse=True):  # one may begin or end another
        text = text.replace(secret, secrets[secret])
    return text


def has_login() -> bool:
    """Whether MLflow would log in: with a token, or a password of the environment or of ~/.mlflow/credentials.

    Raises:
        UserError: that file cannot be read.
    """
    from mlflow.utils.credentials import read_mlflow_creds  # here: MLflow takes seconds to import

    try:
        return bool(os.environ.get("MLFLOW_TRACKING_TOKEN") or read_mlflow_creds().password)
    except (configparser.Error, UnicodeDecodeError):  # their messages quote the file, passwords and all
        raise UserError(
            "~/.mlflow/credentials cannot be read: it has a line [mlflow], then mlflow_tracking_username = … and "
            "mlflow_tracking_password = …, with %% for a %"
        ) from None
