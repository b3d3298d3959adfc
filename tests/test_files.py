"""Files that are there whole or not at all, also when the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gsae_ray.errors import StorageFullError
from gsae_ray.files import read_json, room_needed, write_atomically, write_json


def test_what_is_written_is_read_and_no_temporary_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    assert read_json(path) is None
    for value in ({"a": [1, None]}, {"b": "é"}):
        write_json(path, value)
        assert read_json(path) == value
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [b"old", None])
def test_on_a_full_disk_the_old_contents_stay_and_no_temporary_file(small_disk: Path, old: bytes | None) -> None:
    path = small_disk / "file"
    if old is not None:
        write_atomically(path, old)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, bytes(2**20))
    assert {p.name: p.read_bytes() for p in small_disk.iterdir()} == ({} if old is None else {"file": old})
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_contents_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    (tmp_path / ".file.0").symlink_to("/dev/full")  # a disk without room, for those who cannot mount one
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


def test_a_full_disk_is_one_clear_error_that_names_the_path(small_disk: Path) -> None:
    with pytest.raises(StorageFullError) as found, room_needed(small_disk):
        write_atomically(small_disk / "file", bytes(2**20))
    message = str(found.value)
    assert message.startswith(f"storage is full: {small_disk}")
    assert "--resume" in message
    assert "\n" not in message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_file_that_found_no_room_is_named_where_it_is_known(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageFullError, match=r"storage is full: /far/away: "), room_needed(tmp_path):
        raise OSError(number, os.strerror(number), "/far/away")


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), room_needed(tmp_path):
        write_atomically(tmp_path / "nowhere" / "file", b"")
