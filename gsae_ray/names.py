"""Names that users choose, where they become paths or stand in a command: quoted, or refused."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path
from urllib.parse import quote

from gsae_ray.errors import UserError, shown

MAX_COMPONENT = 200
"""Bytes of a folder's name: file systems end at 255, and files beside it add to it."""
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def folder_name(name: str) -> str:
    """One path component for any name, below whatever folder it is put; different ones for different names.

    Letters, digits, `_`, `-` and inner dots stay; all else is encoded as in a URL, but with `=` for `%`, which URLs of
    such folders would have to encode again. Long names end in a hash.
    """
    quoted = quote(name, safe="", errors="surrogatepass").replace("~", "%7E").replace("%", "=") or "="
    if quoted.startswith("."):  # `..`, and what is hidden
        quoted = f"=2E{quoted[1:]}"
    if len(quoted) <= MAX_COMPONENT:
        return quoted
    return f"{quoted[: MAX_COMPONENT - 34]}=={hashlib.sha256(quoted.encode()).hexdigest()[:32]}"


def check_run_id(run_id: str) -> str:
    """A run's id, which names a folder.

    Raises:
        ValueError: it cannot be one.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"{shown(run_id)} is no run's id; `gsae-ray frontier --json` lists them (run_id)")
    return run_id


def refuse_address(path: str | Path, option: str) -> None:
    """Refuses what is no path of this machine.

    Raises:
        UserError: it is an address (s3://…), which would become a folder of that name; or it is empty.
    """
    text = str(path)
    if scheme := _SCHEME.match(text):  # a Path has one slash only
        raise UserError(  # the rest is not repeated: there may be a password in it
            f"{option}: {scheme[0]}/…: addresses are not supported; give a folder (of a file system that is mounted)"
        )
    if not text or "\0" in text:
        raise UserError(f"{option}: {shown(text)} is no path; give a folder")


def local_path(path: str | Path, option: str) -> Path:
    """A path of this machine, as an option gives it.

    Raises:
        UserError: it is none.
    """
    refuse_address(path, option)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{option}: {shown(str(path))}: there is no such home; give a folder") from error


def own_command(*words: object) -> str:
    """A command of this program, to be pasted into a shell."""
    return shlex.join(["gsae-ray", *map(str, words)])
