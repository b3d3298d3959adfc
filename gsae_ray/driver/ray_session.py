"""The connection to Ray that a launch has: a Ray of its own that only this machine's user reaches, or a cluster's."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator

import ray
from ray._private import ray_constants, services
from ray._private.authentication import authentication_token_setup as authentication
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

from gsae_ray.errors import UserError, first_line
from gsae_ray.tracking.credentials import redacted, redacted_in, refuse_password

CONNECT_TIMEOUT_S = 15.0
"""Nobody listens at an address that takes longer to connect to."""
GIVE_TOKEN = "put it into ~/.ray/auth_token, or set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
"""What to do about a cluster that wants its token."""
FREE_AT_ONCE = {"free_objects_period_milliseconds": 50}
"""Ray collects what nobody refers to for a second before it frees it; a small model has made the next block by then."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connects to Ray for the length of the context; a connection that was there before is left as it was.

    Args:
        address: of a cluster; default: RAY_ADDRESS, or a Ray of this launch's own.

    Raises:
        UserError: there is no cluster, or it refuses us.
    """
    if ray.is_initialized():
        yield
        return
    # Without an address Ray would join any cluster of this machine's user; a sweep starts its own.
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    refuse_password(where, "--address")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with _explained(where):
        if where == "local":
            keep_token_private(make=True)
            with _of_this_machine_only():
                _init(where, include_dashboard=False, _system_config=FREE_AT_ONCE)
        else:
            keep_token_private()
            _check_answers(where)
            _init(where)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)  # Ray's own ends the process on the spot
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(where: str) -> None:
    """Checks that somebody listens at an address: Ray itself would try for two minutes.

    Raises:
        ConnectionError: nobody listens there.
    """
    if where == "auto":  # the cluster that Ray takes for it may be long gone
        where = services.canonicalize_bootstrap_address(where) or where
    host, _, port = where.rpartition("://")[2].rpartition(":")
    if port.isdecimal():  # else it is a name that Ray knows, or no address
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"nobody listens there ({first_line(error)})") from error


def _init(where: str, **options: object) -> None:
    ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR, **options)


@contextlib.contextmanager
def _of_this_machine_only() -> Iterator[None]:
    """Has a Ray that is started within the context listen on the loopback interface only, and ship no files to workers.

    Sets two of Ray's switches, which it reads from the environment when it is imported (which may have been before).
    One is made for systems whose firewalls ask: without a cluster all of Ray's servers listen on the loopback address.
    The other has `uv run` ship the working folder, `gsae_runs` included, to every worker (and fail above 512 MiB).
    """
    before = ray_constants.ENABLE_RAY_CLUSTER, ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turns errors of `ray.init` into a line that says what to do."""
    shown = redacted(where)
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        raise UserError(f"--address: the cluster at {shown!r} wants its token: {GIVE_TOKEN}") from error
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RuntimeEnvSetupError) as error:
        if "working_dir" in str(error):
            lines = redacted_in(" ".join(str(error).splitlines()), where)
            raise UserError(
                "--address: under `uv run` Ray ships the working folder to the cluster, and cannot: set "
                f"RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 to have the nodes' own Python ({lines[:200]})"
            ) from error
        said = redacted_in(first_line(error), where)
        raise UserError(f"--address: cannot connect to a Ray cluster at {shown!r}: {said}") from error


def keep_token_private(make: bool = False) -> None:
    """Makes the file of Ray's token readable for its owner only.

    Args:
        make: whether to make the token where Ray would make one now, in a file that all could read.
    """
    token = authentication._get_default_token_path()
    with contextlib.suppress(OSError):  # another process was quicker, or the file is somebody else's to look after
        wanted = os.environ.get(authentication.AUTH_MODE_ENV_VAR, "token").lower() == "token"
        loader = authentication.AuthenticationTokenLoader.instance()
        if make and wanted and not loader.has_token(ignore_auth_mode=True):
            token.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=token.parent) as file:  # the owner's only
                file.write(generate_new_authentication_token())
                file.flush()
                token.hardlink_to(file.name)
            loader.reset_cache()
        if token.stat().st_mode & 0o077:
            token.chmod(0o600)
