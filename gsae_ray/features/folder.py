"""The folder that dashboards are written to: ours to replace, and there whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from gsae_ray.errors import UserError
from gsae_ray.files import remove_stale

MARK = "gsae_ray_features.json"
"""Says that a folder is of dashboards, and what they have put there."""
_REMEDY = "give another folder, or move what is there away"


def check_out(out: Path) -> None:
    """Refuses a folder that holds something else than dashboards of before.

    Raises:
        UserError: so it does.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is there, and no folder; {_REMEDY}")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    if not there:
        return
    try:
        ours = {MARK, *json.loads((out / MARK).read_bytes())["files"]}
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"--out: {out} is not empty, and no folder of dashboards; {_REMEDY}") from None
    if others := sorted(there - ours):
        raise UserError(f"--out: {out} has something beside its dashboards, {others[0]}; {_REMEDY}")


@contextlib.contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A new folder to write to, which takes the place of `out` at the end; where that is not reached, nothing changes.

    Raises:
        UserError: as `check_out`.
    """
    out = out.resolve()
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    end = secrets.token_hex(8)
    new, old = (out.with_name(f".{out.name}.{what}.{end}") for what in ("new", "old"))
    _clear(out)
    new.mkdir()
    try:
        yield new
        names = sorted(path.name for path in new.iterdir())
        (new / MARK).write_text(json.dumps({"files": names}) + "\n", "utf-8")
        check_out(out)
        _swap(new, old, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _swap(new: Path, old: Path, out: Path) -> None:
    """Puts `new` in the place of `out`, which becomes `old`; where it cannot, `out` is there as before."""
    try:
        if out.exists():
            out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise


def _clear(out: Path) -> None:
    """Mends what processes that were killed have left: dashboards that were on their way out, and half-written ones."""
    for old in out.parent.glob(f"{glob.escape(f'.{out.name}.old.')}*"):
        if not out.exists():
            old.rename(out)
    for what in ("new", "old"):
        remove_stale(out.parent, f".{out.name}.{what}.")
