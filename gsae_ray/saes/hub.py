"""SAEs of the Hugging Face hub: of a repository the files of one folder are downloaded, to the hub's own cache."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from gsae_ray.errors import UserError, shown

_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([^/@]+))?(?:/([^/].*))?", re.ASCII)


class HubId(NamedTuple):
    """Where an SAE is on the hub: `owner/name`, `owner/name/folder` or `owner/name@revision/folder`."""

    repository: str
    revision: str | None
    """A branch, a tag or a commit (a slash in it is written %2F); None: the default branch."""
    folder: str
    """Path of its folder, or of its file of weights, in the repository; empty for the repository itself."""


def parse_hub_id(text: str) -> HubId | None:
    """The parts of a hub id; None of what cannot be one."""
    found = _HUB_ID.fullmatch(text)
    if found is None:
        return None
    repository, revision, folder = found.groups(default="")
    folder = str(PurePosixPath(folder)) if folder else ""
    return None if ".." in folder.split("/") else HubId(repository, unquote(revision) or None, folder)


def is_repository(text: str) -> bool:
    """Whether a text is `owner/name` and no more."""
    return parse_hub_id(text) == HubId(text, None, "")


def fetch(hub_id: HubId, text: str, names: Collection[str]) -> Path:
    """Downloads an SAE, unless it is in the cache, and returns its path there, which ends as in the repository.

    Args:
        hub_id: where it is.
        text: the same as the user has given it, for errors.
        names: of the files that its folder may have.

    Raises:
        UserError: there is no such SAE, or the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download  # only here: who loads a folder needs no hub

    from gsae_ray.hub import explained_by_hub

    repository, revision, folder = hub_id
    wanted = [folder, *(f"{folder}/{name}" for name in names)] if folder else names
    patterns = [glob.escape(path) for path in wanted]
    with explained_by_hub(f"{text}: no such path here, and it cannot be had from the hub"):
        path = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns), folder)
        if path.is_file() or any((path / name).is_file() for name in names):
            return path
        there = HfApi().list_repo_files(repository, revision=revision)
    folders = {str(parent) for file in there for parent in PurePosixPath(file).parents}
    nearest = difflib.get_close_matches(folder, {*folders, *there}, n=1)
    hint = f"did you mean {shown(nearest[0])}? " if nearest and nearest[0] != folder else ""
    below = [file for file in there if file.startswith(f"{folder}/")] or there
    raise UserError(
        f"{text}: no such path here, and on the hub no SAE of a known format; {hint}"
        f"there is {shown(', '.join(below), quoted=False)}"
    )
