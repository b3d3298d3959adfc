"""Files and failures of the Hugging Face hub: without its client's chatter, each failure in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers.utils import cached_file

from gsae_ray.builtin import MODEL_DIR
from gsae_ray.errors import UserError
from gsae_ray.hub import hub_login, quiet_client, said_by_the_hub


def local_directory(name: str) -> Path | None:
    """The directory of a model that is local or built in; None for any other name."""
    try:
        directory = MODEL_DIR if name == "builtin" else Path(name).expanduser()
        return directory if directory.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # too long a name, no such ~
        return None


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """A context in which the hub's client and transformers print nothing while they try and retry."""
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # reports of many lines on weights that do not fit
    try:
        with quiet_client():
            yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def explained(name: str, what: str, key: str = "model.name") -> Iterator[None]:
    """A context that turns whatever loading may raise into a `UserError` of one line.

    Args:
        name: the model or tokenizer that is loaded.
        what: which part of it, in words.
        key: where the sweep file gives `name`.

    Raises:
        UserError: loading failed.
    """
    try:
        with quiet_hub():
            yield
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        ImportError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        HTTPError,  # of a hub that does not answer
    ) as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            reason = "it needs its own code; set model.trust_remote_code: true if you trust it"
        elif local_directory(name) or not isinstance(error, (OSError, HTTPError, HFValidationError)):
            reason = text[:300] or type(error).__name__
        elif Path(name).expanduser().is_absolute() or name.startswith("."):
            raise UserError(f"{key}: there is no directory {name!r}") from error
        elif "gated repo" in text or "401" in text or "403" in text:
            reason = f"it is gated or private{said_by_the_hub(error)}; accept its licence on the hub, and {hub_login()}"
        else:
            reason = (
                f"it is neither 'builtin' nor a local directory, and the hub has no such {what} or cannot be reached"
            )
        raise UserError(f"{key}: cannot load the {what} of {name!r}: {reason}") from error


def find_file(source: dict[str, Any], name: str) -> Path | None:
    """The path of a model's file: in its directory, or in the cache of the hub. None where there is none."""
    found = cached_file(
        source["pretrained_model_name_or_path"],
        name,
        revision=source.get("revision"),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,  # offline, what is not in the cache
    )
    return Path(found) if found else None
