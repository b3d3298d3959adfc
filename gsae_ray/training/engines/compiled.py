"""Functions that Numba compiles, and where it keeps what it has compiled.

Numba's cache is a pickle, the one that this package reads. So it lies where nobody but the user may write, and never in
a sweep's storage, which others may share.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

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


@cache
def cache_directory() -> Path | None:
    """The folder of compiled kernels, which its user alone can read; None where there can be no such folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for folder in (home / "gsae-ray" / "kernels", Path(tempfile.gettempdir(), f"gsae-ray-kernels-{os.getuid()}")):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = folder.lstat()
        except OSError:
            continue
        private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
        if private and os.access(folder, os.W_OK):
            return folder
    return None
