"""Files that are there whole or not at all; a damaged one is told from a whole one.

`Storage` is the seam between what is kept of trials and launches and where it is kept: each of its operations is one
that a file system does at once, or that is written so that a crash leaves the old state or the new.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pydantic

from gsae_ray.errors import DamagedError, StorageFullError, UserError

T = TypeVar("T")
STALE_S = 86_400
"""Seconds without a change after which a temporary folder is of no living process."""
SEAL = "sha256"
"""Key of a JSON file's hash of itself."""


@contextlib.contextmanager
def disk_space_needed(folder: Path) -> Iterator[None]:
    """Turns the error of a full disk within the context into one clear line.

    Raises:
        StorageFullError: there is no space left.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFullError(
            f"storage is full: {error.filename or folder}: {error.strerror}; what was saved before is whole: make "
            "room, and the same command with --resume goes on"
        ) from error


def file_hash(path: Path) -> str:
    """sha256 of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def is_whole(path: Path, sha256: str) -> bool:
    """Whether the file is there, with those contents."""
    return path.exists() and file_hash(path) == sha256


class Storage(Protocol):
    """Where trial and launch directories lie, and all that is done there.

    Of a file that is not there, `FileNotFoundError` is raised, and another `OSError` where an operation fails.
    """

    def read(self, path: Path, start: int = 0) -> bytes:
        """Returns a file's contents, from a byte on."""

    def exists(self, path: Path) -> bool:
        """Whether there is a file or a folder."""

    def names(self, folder: Path) -> list[str]:
        """Names of a folder's files and folders, sorted; none where there is no such folder."""

    def modified(self, path: Path) -> float:
        """When a file was written, in seconds since the epoch."""

    def local(self, path: Path) -> Path:
        """A file or folder as this machine has it, to be read only: a copy, or the thing itself."""

    def create(self, path: Path) -> None:
        """Makes an empty file, exclusively: of several processes one succeeds.

        Raises:
            FileExistsError: there is one.
        """

    def replace(self, path: Path, data: bytes) -> None:
        """Writes a file. A reader sees the old contents or the new, also after a crash."""

    def append(self, path: Path, data: bytes) -> None:
        """Adds to the end of a file, which is made if need be. What a crash may take is the end of what was added."""

    def sync(self, path: Path) -> None:
        """Has what was appended to a file survive a crash."""

    def rename(self, folder: Path, target: Path) -> None:
        """Gives a folder another path, at which there is nothing, at once with all that is in it."""

    def make_folder(self, folder: Path) -> None:
        """Makes a folder, and those above it, where there is none."""

    def remove(self, path: Path) -> None:
        """Removes a file, if it is there."""

    def remove_tree(self, folder: Path) -> None:
        """Removes a folder with all that is in it, as far as that can be done."""

    def remove_empty(self, folder: Path) -> None:
        """Removes a folder that has nothing in it.

        Raises:
            OSError: it has.
        """

    def expire(self, path: Path) -> None:
        """Leaves a file empty and old, which takes no space on a full disk."""


class LocalStorage:
    """The file system of this machine, or one that is mounted."""

    def read(self, path: Path, start: int = 0) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()

    def exists(self, path: Path) -> bool:
        return path.exists()

    def names(self, folder: Path) -> list[str]:
        try:
            return sorted(path.name for path in folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def modified(self, path: Path) -> float:
        return path.stat().st_mtime

    def local(self, path: Path) -> Path:
        return path

    def create(self, path: Path) -> None:
        path.touch(exist_ok=False)

    def replace(self, path: Path, data: bytes) -> None:
        write_atomically(path, data)

    def append(self, path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    def sync(self, path: Path) -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def rename(self, folder: Path, target: Path) -> None:
        folder.rename(target)

    def make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_tree(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def remove_empty(self, folder: Path) -> None:
        folder.rmdir()

    def expire(self, path: Path) -> None:
        os.truncate(path, 0)
        os.utime(path, (0, 0))


LOCAL = LocalStorage()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file. A reader sees the old contents or the new, also after a crash."""
    # By a name that no other process has: on a shared file system two may have one process id.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk is not made fuller
        raise


def remove_stale(folder: Path, start: str) -> None:
    """Removes what processes that died have left in a folder under temporary names.

    Whether another process still writes cannot be told where hosts share a file system, so what has changed within
    `STALE_S` stays.

    Args:
        folder: where they are.
        start: of their names.
    """
    for path in folder.glob(f"{glob.escape(start)}*"):
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            if time.time() - path.stat().st_mtime > STALE_S:
                shutil.rmtree(path, ignore_errors=True)


def check_writable(path: Path, key: str) -> None:
    """Refuses a file that cannot be written, before what is written is computed.

    Args:
        path: of the file.
        key: what the user gave it as: `--out`.

    Raises:
        UserError: its folder is not there, or not writable, or a folder is in its place.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{key}: there is no folder {folder}; make it, or give another file")
    if path.is_dir():
        raise UserError(f"{key}: {path} is a folder; give a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{key}: {folder} is not writable; give a file elsewhere")


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files that belong together: the last one is never there beside older ones, wherever this ends.

    The folder is made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{secrets.token_hex(8)}" for name in files}
    try:
        for name, data in files.items():
            write_atomically(temporary[name], data)
        (folder / list(files)[-1]).unlink(missing_ok=True)
        for name, path in temporary.items():
            path.replace(folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


class JSONFile(Generic[T]):
    """A kind of JSON file: what it holds, and what is to be done where one is damaged."""

    def __init__(self, schema: type[T], remedy: str, sealed: bool = False, once_unsealed: bool = False) -> None:
        """Takes what its files have in common.

        Args:
            schema: of the JSON value.
            remedy: ends the error line about a damaged file.
            sealed: for an object: it carries a hash of itself, so that a wrong number is found, not only bad JSON.
            once_unsealed: older files of this kind carry none.
        """
        self.remedy = remedy
        self.sealed = sealed
        self.once_unsealed = once_unsealed
        self._adapter = pydantic.TypeAdapter(schema)

    def encode(self, value: T, indent: int | None = None) -> bytes:
        plain = json.loads(json.dumps(value, default=dataclasses.asdict))
        sealed = {**plain, SEAL: digest(plain)} if self.sealed else plain
        return (json.dumps(sealed, indent=indent) + "\n").encode()

    def decode(self, data: bytes) -> T:
        """The inverse of `encode`.

        Raises:
            ValueError: it is something else.
        """
        value = self._adapter.validate_json(data, strict=True)
        if self.sealed:
            plain = json.loads(data)
            seal = plain.pop(SEAL, None)
            if seal != digest(plain) and not (seal is None and self.once_unsealed):
                raise ValueError("another hash")
        return value

    def write(self, path: Path, value: T, storage: Storage = LOCAL) -> None:
        storage.replace(path, self.encode(value, indent=2))

    def read(self, path: Path, storage: Storage = LOCAL) -> T | None:
        """What `write` wrote, or None where there is no such file.

        Raises:
            DamagedError: something else is there.
        """
        try:
            return self.decode(storage.read(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamagedError(f"{path}: this file is damaged; {self.remedy}") from error

    def read_whole(self, path: Path, storage: Storage = LOCAL) -> T | None:
        """As `read`, but None for a damaged file too: of what can be made again."""
        with contextlib.suppress(DamagedError):
            return self.read(path, storage)
        return None


def digest(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
