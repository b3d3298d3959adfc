"""A folder that collected activations are written to: resumable, and there under its name only when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from gsae_ray.activation_files.schema import HELDOUT, SCHEMA, SCHEMA_FILE, TRAIN, Description, FileSchema, Schema
from gsae_ray.errors import UserError
from gsae_ray.files import JSONFile, file_hash
from gsae_ray.hardware import machine

UNFINISHED = ".unfinished"
"""Ending of the folder's name until it is whole."""
_LOCK, _PROGRESS_FILE = "lock", "progress.json"
_IN_WORDS = ("model", "dataset")
"""Parts of a description whose fingerprints stand beside them."""
_CALLED = {
    "model_fingerprint": "the model",
    "train_fingerprint": "the training data",
    "heldout_fingerprint": "the held-out data",
    "train": "how many training rows there are, or in producers.batch",
    "heldout": "how many held-out rows there are, or in evaluation.batch",
    "forward": "producers.cpus, or in whether there is a GPU",
}
"""Parts of a description in words."""


class _Progress(TypedDict):
    """`progress.json`."""

    description: Description
    machines: list[str]
    blocks: dict[str, dict[str, FileSchema]]
    """Block, as `train/00000` -> its files."""


_PROGRESS = JSONFile(_Progress, "remove its folder, and collect again", sealed=True)


class Collection:
    """The folder beside `out` in which files gather, until `finish` gives it that name.

    Blocks are recorded when their files are written through to the disk; what an interruption leaves of a block is
    removed, and the block is written again.
    """

    def __init__(self, out: Path, description: Description, progress: _Progress | None) -> None:
        """Goes on from `progress`; see `open_collection`."""
        self.out = out
        self.folder = unfinished(out)
        self.progress = progress or _Progress(description=description, machines=[], blocks={})
        if machine() not in self.progress["machines"]:
            self.progress["machines"].append(machine())
        self._write_progress()
        recorded = {self.folder / name for files in self.progress["blocks"].values() for name in files}
        for split in (TRAIN, HELDOUT):
            for path in sorted((self.folder / split).rglob("*"), reverse=True):
                if path.is_dir():
                    with contextlib.suppress(OSError):  # there is something in it
                        path.rmdir()
                elif path not in recorded:
                    path.unlink()

    def has(self, block: str) -> bool:
        """Whether a block is written."""
        files = self.progress["blocks"].get(block)
        return files is not None and all(_size(self.folder / name) == file["bytes"] for name, file in files.items())

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that are written."""
        return sum(file["bytes"] for files in self.progress["blocks"].values() for file in files.values())

    def path(self, name: str) -> Path:
        """Where a file is to be written, given its path within the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, block: str, names: list[str]) -> None:
        """Records a block whose files are written."""
        found = {name: self.folder / name for name in names}
        self.progress["blocks"][block] = {
            name: FileSchema(bytes=path.stat().st_size, sha256=file_hash(path)) for name, path in found.items()
        }
        self._write_progress()

    def finish(self) -> None:
        """Writes the schema, and gives the folder its name."""
        files = {name: file for files in self.progress["blocks"].values() for name, file in files.items()}
        machines = self.progress["machines"]
        SCHEMA.write(self.folder / SCHEMA_FILE, Schema(**self.progress["description"], machines=machines, files=files))
        if self.out.exists():
            self.out.rmdir()  # it is empty
        self.folder.rename(self.out)
        _remove_leftovers(self.out)

    def _write_progress(self) -> None:
        _PROGRESS.write(self.folder / _PROGRESS_FILE, self.progress)


@contextlib.contextmanager
def open_collection(out: Path, description: Description) -> Iterator[Collection | None]:
    """Begins a collection, or goes on with one, for the length of the context; None where it is finished.

    Raises:
        UserError: there is something else in the folder, or another process is writing there.
    """
    if (found := SCHEMA.read(out / SCHEMA_FILE)) is not None:
        if different := _difference(found, description):
            raise UserError(f"--out: {out} has other activations ({different}); give another folder")
        _remove_leftovers(out)
        yield None
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: there is something else at {out}; give a new folder, or an empty one")
    folder = unfinished(out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out: another process is writing to {folder}; wait for it, or stop it") from None
        progress = _PROGRESS.read(folder / _PROGRESS_FILE)
        if progress is None and {path.name for path in folder.iterdir()} != {_LOCK}:
            raise UserError(f"--out: there is something else in {folder}; remove it, or give another folder")
        if progress is not None and (different := _difference(progress["description"], description)):
            raise UserError(
                f"--out: {folder} is the beginning of other activations ({different}); remove it, or give another "
                "folder"
            )
        yield Collection(out, description, progress)


def unfinished(out: Path) -> Path:
    """The folder in which files gather until all are there."""
    return out.with_name(out.name + UNFINISHED)


def free_bytes(path: Path) -> int:
    """Bytes that are free where a folder is, or is to be made."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _difference(found: Mapping[str, Any], wanted: Description) -> str | None:
    """The first thing in which two descriptions differ, in words."""
    for key, value in wanted.items():
        if key not in _IN_WORDS and found[key] != value:
            return f"a difference in {_CALLED.get(key, key.replace('_', ' '))}"
    return None


def _remove_leftovers(out: Path) -> None:
    for name in (_LOCK, _PROGRESS_FILE):
        (out / name).unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
