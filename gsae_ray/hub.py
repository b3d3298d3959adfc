"""The client of the Hugging Face hub: without its chatter, each of its failures in one line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from gsae_ray.errors import UserError, first_line, shown


@contextlib.contextmanager
def quiet_client() -> Iterator[None]:
    """A context in which the hub's client prints nothing while it tries and retries."""
    log = logging.getLogger("huggingface_hub")
    level, bars = log.level, not are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            enable_progress_bars()


@contextlib.contextmanager
def explained_by_hub(what: str) -> Iterator[None]:
    """A context in which the hub's client is quiet, and its failures become one line.

    Args:
        what: what the line begins with.

    Raises:
        UserError: the hub refuses, has no such thing, or cannot be reached.
    """
    try:
        with quiet_client():
            yield
    except (OSError, ValueError, HTTPError, RuntimeError) as error:  # the last of Xet, the hub's way of transfer
        raise UserError(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Why the client has failed, and what to do: of an error that wraps others the first cause that says it."""
    for cause in _causes(error):
        if isinstance(cause, GatedRepoError):
            return f"it is gated{said_by_the_hub(cause)}; accept its licence on the hub, and {hub_login()}"
        if isinstance(cause, RevisionNotFoundError):
            return "the repository has no such revision"
        if isinstance(cause, RepositoryNotFoundError):
            return f"the hub has no such repository, or it is private; see that the name is right, and {hub_login()}"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            remedy = hub_login() if status in (401, 403) else "try again later"
            return f"the hub refuses it with status {status}{said_by_the_hub(cause)}; {remedy}"
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it"
        if isinstance(cause, HTTPError):
            why = shown(first_line(cause), quoted=False)
            return f"the hub ({constants.ENDPOINT}) cannot be reached: {why}; it needs a network"
    return shown(first_line(error), quoted=False)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that have led to it, the newest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def said_by_the_hub(error: BaseException | None) -> str:
    """The words that the hub sent with its refusal, in brackets: they name the page to visit. Empty without such."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.server_message:
            return f" ({' '.join(cause.server_message.split())[:300]})"
    return ""


def hub_login() -> str:
    """Advice on the hub's token."""
    if get_token() is None:
        return "set HF_TOKEN"
    return "see that HF_TOKEN is of an account that may have it"
