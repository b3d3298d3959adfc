"""The dashboard of a Ray cluster: a client of it, the cluster's nodes, and its errors as lines that say what to do."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.job_submission import JobSubmissionClient

from gsae_ray.capacity.nodes import Node
from gsae_ray.driver.ray_session import GIVE_TOKEN, keep_token_private
from gsae_ray.errors import UserError, first_line
from gsae_ray.jobs import defaults
from gsae_ray.tracking.connection import PATIENCE_S
from gsae_ray.tracking.credentials import redacted, redacted_in, refuse_password


def connect(address: str | None = None) -> JobSubmissionClient:
    """A client of a cluster's dashboard, with Ray's token where there is one.

    Args:
        address: of the dashboard; default: RAY_API_SERVER_ADDRESS, or `defaults.DASHBOARD`.

    Raises:
        UserError: nobody answers, the token is missing or wrong, or the cluster runs another Ray.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or defaults.DASHBOARD
    refuse_password(address, "--address")
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(f"--address: {redacted(address)!r} is not that of a dashboard; give it as http://HOST:8265")
    # Ray's clients do not send a token that is there unless they are told to, and remember the first that they see.
    from ray._private.authentication import authentication_token_setup as setup

    logging.getLogger(setup.__name__).setLevel(logging.ERROR)
    if not ray.is_initialized():
        setup.AuthenticationTokenLoader.instance().reset_cache()
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    keep_token_private()
    with explained(address):
        requests.get(f"{address.rstrip('/')}/api/version", timeout=PATIENCE_S).close()  # Ray's client waits for ever
        client = JobSubmissionClient(address)
    theirs = str(client._server_ray_version)
    if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise UserError(
            f"--address: the cluster at {redacted(address)} runs Ray {theirs}, and this gsae-ray needs Ray "
            f"{ray.__version__} on both sides; pip install 'ray[default,tune]=={ray.__version__}' on its nodes"
        )
    return client


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Within the context, what goes wrong between Ray's client and the dashboard is one line that says what to do.

    Raises:
        UserError: that line.
    """
    where = redacted(address)
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        raise UserError(f"--address: the cluster at {where} wants its token: {GIVE_TOKEN}") from error
    except (OSError, aiohttp.ClientError) as error:  # requests' errors are OSErrors
        raise UserError(
            f"--address: no Ray dashboard answers at {where} ({redacted_in(first_line(error), address)[:200]}); is the "
            "tunnel up (`ray dashboard cluster.yaml`), and the port right?"
        ) from error
    except RuntimeError as error:
        said = redacted_in(first_line(error), address)[:500]
        raise UserError(f"--address: the cluster at {where} says: {said}") from error


def nodes(address: str | None = None) -> list[Node]:
    """The nodes of a cluster, as `gsae-ray plan` wants them, without those that its autoscaler may add.

    Raises:
        UserError: nobody answers.
    """
    from ray.util.state import list_nodes

    client = connect(address)
    with explained(client.get_address()):
        found = list_nodes(address=client.get_address(), filters=[("state", "=", "ALIVE")], detail=True)
    return [Node.alive(node.resources_total, node.labels or {}) for node in found]
