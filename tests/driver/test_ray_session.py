"""A launch's own Ray, as others on its network and its machine see it; and what cannot be connected to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gsae_ray.driver import ray_session as connection
from gsae_ray.driver.ray_session import connected, keep_token_private
from gsae_ray.errors import UserError

LOOK = """
import json, psutil, ray
from gsae_ray.driver.ray_session import connected
with connected(None):
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [c.laddr for p in family for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    runs = ray.get(ray.remote(lambda: True).remote())
    shipped = dict(ray.get_runtime_context().runtime_env)
    print(json.dumps({"addresses": [ip for ip, _ in listening], "runs": runs, "shipped": shipped}))
"""
TOKEN_FILE = ".ray/auth_token"


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of somebody who has never used Ray; their home is the folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "RAY_ADDR"))}
    environment |= {"HOME": str(folder), **variables}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process sees of its own Ray that `uv run` started in a folder with a file that Ray would not ship."""
    folder = tmp_path_factory.mktemp("home")
    with (folder / "large").open("wb") as file:
        file.truncate(600 * 2**20)
    done = run(folder, *as_uv(folder), sys.executable, "-c", LOOK)
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert seen["runs"]
    return seen | {"token": folder / TOKEN_FILE}


def as_uv(folder: Path) -> tuple[str, str]:
    """What Ray takes for `uv run`, in front of a command: an ancestor of that name."""
    (folder / "uv").symlink_to("/bin/sh")
    (folder / "run").write_text('"$@"\nexit $?\n')  # not `exec`: the ancestor stays
    return str(folder / "uv"), "run"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.slow
def test_a_ray_of_its_own_is_reached_from_this_machine_only(found: dict[str, Any]) -> None:
    assert len(found["addresses"]) >= 5, "the driver, the GCS, the raylet, its agent"
    assert {ip.removeprefix("::ffff:") for ip in found["addresses"]} == {"127.0.0.1"}


@pytest.mark.slow
def test_a_sweep_that_uv_run_starts_ships_nothing(found: dict[str, Any]) -> None:
    assert found["shipped"] == {}


@pytest.mark.slow
def test_a_token_that_is_made_is_its_owners_only(found: dict[str, Any]) -> None:
    assert mode(found["token"]) == 0o600 and len(found["token"].read_text()) == 64


def test_a_token_that_all_can_read_becomes_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_token_private()
    assert not (tmp_path / TOKEN_FILE).exists(), "only where Ray would make one"
    (tmp_path / TOKEN_FILE).parent.mkdir()
    (tmp_path / TOKEN_FILE).write_text("a token")
    (tmp_path / TOKEN_FILE).chmod(0o644)
    keep_token_private()
    assert mode(tmp_path / TOKEN_FILE) == 0o600 and (tmp_path / TOKEN_FILE).read_text() == "a token"


CONNECT = """
import socket
from gsae_ray.driver.ray_session import connected
from gsae_ray.errors import UserError
with socket.create_server(("127.0.0.1", 0)) as server:
    try:
        with connected(f"127.0.0.1:{server.getsockname()[1]}"):
            pass
    except UserError as error:
        print(error)
"""


def test_a_cluster_without_its_token_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, sys.executable, "-c", CONNECT, RAY_AUTH_MODE="token")
    assert re.match(r"--address: the cluster at '127.0.0.1:\d+' wants its token: ", done.stdout), done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "127.0.0.1:999999999"])
def test_a_cluster_that_is_not_there_is_known_at_once(address: str) -> None:
    """Ray itself tries for two minutes."""
    line = rf"^--address: cannot connect to a Ray cluster at '{re.escape(address)}': nobody listens there \("
    with pytest.raises(UserError, match=line), connected(address):
        pass


@pytest.mark.parametrize("address", ["ray://secret@127.0.0.1:1", "127.0.0.1:1?key=secret", "secret@127.0.0.1:1"])
def test_the_secrets_of_an_address_are_not_told(address: str) -> None:
    with pytest.raises(UserError, match=r"^--address: .*127\.0\.0\.1:1") as error:  # noqa: SIM117
        with connected(address):
            pass
    assert "secret" not in str(error.value)


def test_what_ray_takes_for_auto_and_is_no_more_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file of the last cluster stays when that has gone."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", list)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: "127.0.0.1:1")
    monkeypatch.setattr(connection, "_init", lambda _: pytest.fail("Ray itself tries for two minutes"))
    with pytest.raises(UserError, match="^--address: .* 'auto': nobody listens there"), connected("auto"):
        pass


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(UserError, match="^--address: there is a password in the address") as refused:  # noqa: SIM117
        with connected("ray://me:hunter2@127.0.0.1:1"):
            pass
    assert "hunter2" not in str(refused.value)


def test_a_folder_that_uv_run_cannot_ship_to_a_cluster_is_one_line(tmp_path: Path) -> None:
    """Ray wants the project in it."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "folder").mkdir()
    uv = as_uv(tmp_path / "folder")
    done = run(tmp_path / "folder", *uv, sys.executable, "-c", CONNECT)
    assert done.stdout.startswith("--address: under `uv run` Ray ships the working folder"), done.stderr
    assert "RAY_ENABLE_UV_RUN_RUNTIME_ENV=0" in done.stdout and len(done.stdout.splitlines()) == 1
