"""Files that are there whole or not at all; a damaged one is told from a whole one."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic

from gsae_ray.errors import DamagedError, StorageFullError

T = TypeVar("T")
SEAL = "sha256"
"""Key of a JSON file's hash of itself."""


@contextlib.contextmanager
def room_needed(folder: Path) -> Iterator[None]:
    """Within the context a full disk is one clear error.

    Raises:
        StorageFullError: there is no room left.
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


def write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the old contents or the new, also after a crash."""
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

    def __init__(self, schema: type[T], remedy: str, sealed: bool = False) -> None:
        """
        Args:
            remedy: ends the line about a damaged one.
            sealed: for an object: it carries a hash of itself, so that a wrong number is found, not only bad JSON.
        """
        self.remedy = remedy
        self.sealed = sealed
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
            if plain.pop(SEAL, None) != digest(plain):
                raise ValueError("another hash")
        return value

    def write(self, path: Path, value: T) -> None:
        write_atomically(path, self.encode(value, indent=2))

    def read(self, path: Path) -> T | None:
        """What `write` wrote, or None where there is no such file.

        Raises:
            DamagedError: something else is there.
        """
        try:
            return self.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamagedError(f"{path}: this file is damaged; {self.remedy}") from error

    def read_whole(self, path: Path) -> T | None:
        """As `read`, but None for a damaged file too: of what can be made again."""
        with contextlib.suppress(DamagedError):
            return self.read(path)
        return None


def digest(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
