"""The files of a saved SAE of ours as files: which they are, what they hash to, what is known without weights.

No torch here: commands that only look at SAEs, or copy one, do without it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from gsae_ray.errors import UserError
from gsae_ray.files import digest, file_hash
from gsae_ray.saes import config_file
from gsae_ray.saes.config_file import CONFIG_FILE as CONFIG_FILE

WEIGHTS_FILE = "sae_weights.safetensors"
NAMES = (CONFIG_FILE, WEIGHTS_FILE)


def content_hash(directory: str | Path) -> str:
    """The sha256 of both files of a saved SAE.

    Raises:
        FileNotFoundError: one is missing.
    """
    return digest([file_hash(Path(directory) / name) for name in NAMES])


def holds(directory: str | Path, content: str | None) -> bool:
    """Whether a folder has the SAE with that `content_hash`."""
    with contextlib.suppress(FileNotFoundError):
        return content_hash(directory) == content
    return False


def visible_files(directory: Path) -> set[str]:
    """Names of a folder's files that are not hidden; none where there is no such folder."""
    return {path.name for path in directory.iterdir() if path.name[0] != "."} if directory.exists() else set()


def saved_files_of(directory: Path) -> set[str]:
    """Names of the files of a folder that are of an SAE of ours."""
    try:
        config_file.decode((directory / CONFIG_FILE).read_bytes())
    except (OSError, ValueError, UserError):
        return set()
    return set(NAMES)
