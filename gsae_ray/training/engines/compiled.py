"""Functions that Numba compiles, and where it keeps what it has compiled.

Numba's cache is a pickle, the one that this package reads. So it lies where nobody but the user may write, and never in
a sweep's storage, which others may share.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from gsae_ray.version import __version__

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """Compiles a function at its first call.

    It runs without the interpreter's lock. Sums may be reordered to fit vector registers, the same on every run;
    nothing assumes that numbers are finite.
    """
    directory = cache_directory()
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(directory or "")
    try:
        compiled: Any = numba.njit(
            nogil=True, cache=directory is not None, error_model="numpy", fastmath={"reassoc", "contract"}
        )(function)
    finally:
        config.CACHE_DIR = before
    return cast(Function, compiled)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Where several processes of a machine begin together, the first one compiles, and the others load what it left."""
    directory = cache_directory()
    with contextlib.ExitStack() as stack:
        if directory is not None:
            with contextlib.suppress(OSError):  # a file system without locks: all of them compile
                lock = stack.enter_context((directory / "lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or the process has ended
        yield


def holds_kernels() -> bool:
    """Whether kernels were compiled on this machine before, though perhaps not all, or of other code."""
    directory = cache_directory()
    return directory is not None and any(directory.rglob("*.nbi"))


@cache
def cache_directory() -> Path | None:
    """The folder of compiled kernels, which its user alone can change; None where there can be no such folder."""
    candidates = []
    with contextlib.suppress(RuntimeError):  # a process without a home
        candidates.append(Path.home() / ".cache")
    if (given := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        candidates.insert(0, given)
    own = [folder / "gsae-ray" / "kernels" for folder in candidates]
    for folder in (*own, Path(tempfile.gettempdir(), f"gsae-ray-kernels-{os.getuid()}")):
        versioned = folder / __version__  # Numba's own key does not have the options that it compiles with
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            versioned.mkdir(exist_ok=True, mode=0o700)
            if all(_only_ours(path) for path in (versioned, *versioned.absolute().parents)):
                return versioned
        except OSError:
            continue
    return None


def _only_ours(path: Path) -> bool:
    """Whether nobody but the user and the system can put another folder in the place of this one or of one in it."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return path.is_symlink() and _only_ours(path.resolve())
    others_write = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    return status.st_uid in (os.getuid(), 0) and not others_write
