"""Files that are there whole or not at all, also when the disk is full; damaged ones are found."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
from damage import DAMAGES, Damage

from gsae_ray.errors import DamagedError, StorageFullError
from gsae_ray.files import JSONFile, disk_space_needed, write_atomically, write_together


@dataclasses.dataclass
class Facts:
    """With everything that JSON has."""

    number: float = 0.1 + 0.2
    counts: dict[int, int] = dataclasses.field(default_factory=lambda: {3: 1, 20: 2})
    anything: Any = dataclasses.field(default_factory=lambda: ["é", None, -math.inf])


SEALED, OPEN = (JSONFile(Facts, "make it again", sealed=sealed) for sealed in (True, False))


@pytest.mark.parametrize("kind", [SEALED, OPEN])
def test_what_is_written_is_read_and_no_temporary_file_stays(tmp_path: Path, kind: JSONFile[Facts]) -> None:
    path = tmp_path / "file.json"
    assert kind.read(path) is kind.read_whole(path) is None
    for value in (Facts(), Facts(number=math.inf, counts={})):
        kind.write(path, value)
        assert kind.read(path) == kind.read_whole(path) == value
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_one_line_that_names_it_and_what_to_do(tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "file.json"
    SEALED.write(path, Facts())
    damage(path)
    assert SEALED.read_whole(path) is None
    if path.exists():
        with pytest.raises(DamagedError) as found:
            SEALED.read(path)
        assert str(found.value) == f"{path}: this file is damaged; make it again"


def test_of_a_sealed_file_a_flipped_bit_is_found_in_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    SEALED.write(path, Facts())
    whole = path.read_bytes()
    for byte in range(len(whole)):
        data = bytearray(whole)
        data[byte] ^= 1 << byte % 8
        path.write_bytes(data)
        found = SEALED.read_whole(path)
        assert found is None or found == Facts(), "white space means nothing"


@pytest.mark.parametrize("last", ["weights", "cfg", None])
def test_files_that_belong_together_are_never_mixed_with_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str | None
) -> None:
    write_together(tmp_path / "sae", {"weights": b"old", "cfg": b"old"})
    replace = Path.replace

    def dies(path: Path, target: Path) -> Path:
        if target.name == last:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(path, target)

    with monkeypatch.context() as patch, contextlib.suppress(OSError):
        patch.setattr(Path, "replace", dies)
        write_together(tmp_path / "sae", {"weights": b"new", "cfg": b"new"})
    found = {path.name: path.read_bytes() for path in (tmp_path / "sae").iterdir()}
    expected = {"weights": {"weights": b"old"}, "cfg": {"weights": b"new"}, None: {"weights": b"new", "cfg": b"new"}}
    assert found == expected[last]


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
    with pytest.raises(StorageFullError) as found, disk_space_needed(small_disk):
        write_atomically(small_disk / "file", bytes(2**20))
    message = str(found.value)
    assert message.startswith(f"storage is full: {small_disk}")
    assert "--resume" in message
    assert "\n" not in message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_file_that_found_no_room_is_named_where_it_is_known(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageFullError, match=r"storage is full: /far/away: "), disk_space_needed(tmp_path):
        raise OSError(number, os.strerror(number), "/far/away")


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_space_needed(tmp_path):
        write_atomically(tmp_path / "nowhere" / "file", b"")
