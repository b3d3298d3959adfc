"""Where MLflow is: addresses, logins, and what is said of a store that cannot be had. No password is ever told."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import pytest
from servers import free_ports

from gsae_ray.errors import UserError
from gsae_ray.tracking.connection import connect, resolve_uri
from gsae_ray.tracking.credentials import SECRET_KEYS, redacted, redacted_in, refuse_password
from gsae_ray.tracking.experiment import check


def test_a_server_that_does_not_answer_is_an_error_within_seconds() -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"^--tracking-uri: the MLflow server at '{address}' does not answer") as error:
        connect(address)
    assert time.monotonic() - started < 120  # not the minutes of every retry
    assert "\n" not in str(error.value)


def test_an_address_that_means_nothing_to_mlflow_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"^--tracking-uri: .*gopher://there"):
        connect("gopher://there")


def test_a_path_is_answered_with_its_address(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    for made in (False, True):
        if made:
            file.touch()
        with pytest.raises(UserError) as error:
            connect(str(file))
        assert str(error.value) == f"--tracking-uri: '{file}' is a path, and no address; give sqlite:///{file}"


def test_an_sqlite_store_in_no_folder_is_a_user_error_and_no_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--tracking-uri: .* there is no such folder"):
        connect(f"sqlite:///{tmp_path}/folder/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_the_tracking_uri_is_the_argument_else_the_environment_else_a_file_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://10.0.0.1:5000")
    assert resolve_uri(None) == "http://10.0.0.1:5000"
    assert resolve_uri("http://10.0.0.2") == "http://10.0.0.2"


def test_paths_of_sqlite_stores_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri("sqlite:////elsewhere/mlflow.db") == "sqlite:////elsewhere/mlflow.db"


ODD = ("sec#secret", "sec/secret", "sec?secret", "sec@secret", "sec:secret")
"""Passwords of which some parsers see the first part only."""


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("http://me:secret@host:5000", "MLFLOW_TRACKING_USERNAME"),
        ("https://secret@host", "MLFLOW_TRACKING_USERNAME"),  # it may be a token
        ("HTTP://me:secret@host", "MLFLOW_TRACKING_USERNAME"),
        (" http://secret@host", "MLFLOW_TRACKING_USERNAME"),  # a parser takes the blank off
        ("http://host?access_token=secret", "MLFLOW_TRACKING_USERNAME"),
        ("postgresql://me:secret@host/mlflow", "PGPASSWORD or ~/.pgpass"),
        *[(f"mssql+pyodbc://me:{password}@host/db", "PGPASSWORD") for password in ODD],
        *[(f"mysql://me@host/mlflow?{key}=secret", "PGPASSWORD") for key in (*SECRET_KEYS, "API_KEY")],
        ("postgresql://me@server:secret@server.example/db", "PGPASSWORD"),
        ("sqlite+pysqlcipher://:secret@/x.db", "PGPASSWORD"),
        ("file://me:secret@host/p", "PGPASSWORD"),
    ],
)
def test_an_address_with_a_password_is_refused_and_never_told(address: str, remedy: str) -> None:
    for ask in (functools.partial(check, experiment="small"), connect, resolve_uri):
        with pytest.raises(UserError, match="--tracking-uri: there is a password in the address") as error:
            ask(address)
        assert remedy in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize("password", ODD)
def test_a_servers_address_with_whatever_password_is_refused_and_never_told(password: str) -> None:
    """Where the parser sees none, it sees a port that is no number."""
    with pytest.raises(UserError, match="^--tracking-uri: ") as error:
        connect(f"http://me:{password}@host")
    assert "sec" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://host:5000/path?max_tokens=3&keys=all&tokenizer=x",
        "http://host:5000/Users/me@work",
        "http://[::1]:5000",
        "http://[::1]:5000/@a",
        "postgresql:///db?host=/cloudsql/p:r:i&user=me@p.iam",
        "postgresql://me@a:5432,b:5433/db",
        "/a/b:c@d",
        "sqlite+pysqlite:////a/b:c@d/m.db",
        "https://host",
        "host:5000",
        "postgresql://me@host:5432/db?passfile=/p&sslkey=/k",
        "postgresql://me:@host/db",
        "sqlite:////home/me:you@work/mlflow.db",
        "databricks://profile:prefix",
    ],
)
def test_an_address_without_a_password_is_not_refused(address: str) -> None:
    refuse_password(address)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("postgresql://me@host:5432/db?passfile=/p&sslkey=/k", "postgresql://***@host:5432/db?passfile=***&sslkey=***"),
        ("postgresql://domain/me:secret@host/db", "postgresql://domain/***@host/db"),
        ("me:secret@host:5000", "***@host:5000"),
        ("sqlite:////home/me:you@work/mlflow.db", "sqlite:////home/me:you@work/mlflow.db"),
    ],
)
def test_an_address_is_printed_without_userinfo_and_values_of_its_query(address: str, shown: str) -> None:
    assert redacted(address) == shown


REDACTED = ("http://127.0.0.1:1?key=secret", "postgresql://secret@127.0.0.1:1/db?passfile=secret")
"""Addresses that are not refused, of servers that are not there."""


def test_what_quotes_an_address_in_part_is_printed_without_its_secrets_too() -> None:
    address = "http://host:5000?key=secret&k=sec"
    said = "Max retries exceeded with url: /?key=secret&k=sec/api/2.0 of http://host:5000?key=secret&k=sec/api"
    shown = "Max retries exceeded with url: /?key=***&k=***/api/2.0 of http://host:5000?key=***&k=***/api"
    assert redacted_in(said, address) == shown
    assert redacted_in("no route to me@host, aime@host", "ray://me@aime@host") == "no route to ***@host, ***@host"


@pytest.mark.parametrize(
    "address", [*REDACTED, "me:secret@host:5000", "http//me:secret@host", "gopher://there?key=secret"]
)
def test_what_mlflow_says_of_an_address_is_told_without_its_secrets(address: str) -> None:
    with pytest.raises(UserError, match="^--tracking-uri: ") as error:
        connect(address)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [b"mlflow_tracking_password = secret", b"[mlflow]\n\xffsecret", b"[mlflow]\nmlflow_tracking_password = 1%secret"],
)
def test_a_file_of_logins_that_cannot_be_read_is_told_of(
    wrong: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_bytes(wrong)
    with pytest.raises(UserError, match="~/.mlflow/credentials cannot be read") as error:
        connect("http://127.0.0.1:1")
    assert "secret" not in str(error.value)


def test_an_address_from_the_environment_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host")
    with pytest.raises(UserError, match="--tracking-uri: there is a password"):
        resolve_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://u@h/db?passfile=/p")
    assert resolve_uri(None) == "postgresql://u@h/db?passfile=/p"
