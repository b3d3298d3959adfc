"""The folder of dashboards is there whole, as before or as after, wherever its writer fails or is killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gsae_ray.features.folder import replaced
from gsae_ray.files import STALE_S


def write(out: Path, text: str) -> None:
    with replaced(out) as folder:
        (folder / "index.html").write_text(text)


def shown(out: Path) -> str:
    return (out / "index.html").read_text()


def test_one_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = tmp_path / "out", Path.rename
    write(out, "old")

    def full(path: Path, target: Path) -> Path:
        if ".new." in path.name:
            raise OSError("no space left")
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(Path, "rename", full)
        write(out, "new")
    assert shown(out) == "old" and [*tmp_path.iterdir()] == [out]
    write(out, "new")
    assert shown(out) == "new" and [*tmp_path.iterdir()] == [out]


def test_what_killed_processes_have_left_is_mended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    living, dead = (tmp_path / f".out.new.{name}" for name in ("living", "dead"))
    for folder in (living, dead):
        (folder / "data").mkdir(parents=True)
    long_ago = time.time() - 2 * STALE_S
    os.utime(dead, (long_ago, long_ago))
    out.rename(tmp_path / ".out.old.killed")
    with pytest.raises(ZeroDivisionError), replaced(out):
        raise ZeroDivisionError
    assert shown(out) == "old" and {*tmp_path.iterdir()} == {out, living}
