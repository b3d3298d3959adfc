"""The folder that dashboards are written to: ours to replace, and there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from gsae_ray.errors import UserError

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
    new.mkdir()
    try:
        yield new
        names = sorted(path.name for path in new.iterdir())
        (new / MARK).write_text(json.dumps({"files": names}) + "\n", "utf-8")
        check_out(out)
        if out.exists():
            out.rename(old)
        new.rename(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
