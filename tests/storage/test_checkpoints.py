"""The checkpoints of a trial's directory: what survives a kill, damage and a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import cut, flip
from training_steps import TRIAL, assert_state, state_at, steps_of, train
from trials import FINGERPRINT, begin, random_sae, row_metrics

from gsae_ray import saes
from gsae_ray.errors import StorageFullError
from gsae_ray.files import disk_space_needed
from gsae_ray.storage import checkpoints
from gsae_ray.storage.checkpoints import MANIFEST, Checkpoints


def test_a_new_attempt_gets_the_newest_checkpoint_bit_for_bit_and_the_rows_up_to_it(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    train(directory, 1, 5)
    successor = begin(tmp_path, TRIAL)
    assert_state(successor.newest_state(), 4 * 64)
    assert steps_of(successor) == [1, 2, 3, 4]
    train(successor, 5, 6)
    assert steps_of(successor) == [1, 2, 3, 4, 5, 6]
    assert_state(successor.newest_state(), 6 * 64)


def test_a_fresh_trial_has_no_state_and_no_rows(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    assert directory.newest_state() is None
    assert directory.rows()[0] == []
    assert not directory.done
    assert directory.failure is None
    assert directory.evaluation(FINGERPRINT) is None


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    train(directory, 1, 11, checkpoint_every=1)
    kept = sorted(int(path.name) for path in (directory.path / "checkpoints").iterdir())
    assert kept == [10 * 64, 11 * 64]


def test_a_large_state_is_written_in_parts_and_any_that_is_damaged_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "FILE_BYTES", 40)
    kept = Checkpoints(tmp_path)
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.arange(4.0), "c": torch.zeros(()), "d": torch.ones(20)}
    kept.write(64, (tensors, {"step": 1}), lambda: None)
    files = sorted(path.name for path in (tmp_path / "64").glob("*.safetensors"))
    assert files == ["state-1.safetensors", "state-2.safetensors", "state.safetensors"]
    state = kept.read(64)
    assert state is not None and state[1] == {"step": 1} and state[0].keys() == tensors.keys()
    assert all(torch.equal(state[0][name], tensor) for name, tensor in tensors.items())
    for name in files:
        kept.write(128, (tensors, {"step": 2}), lambda: None)
        flip(tmp_path / "128" / name)
        assert kept.read(128) is None
        (tmp_path / "128" / name).unlink()
        assert kept.read(128) is None
    kept.write(192, ({}, {"step": 3}), lambda: None)
    assert kept.read(192) == ({}, {"step": 3})


def test_a_checkpoint_from_before_there_were_further_files_is_read(tmp_path: Path) -> None:
    Checkpoints(tmp_path).write(64, ({"a": torch.ones(3)}, {"step": 1}), lambda: None)
    path = tmp_path / "64" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("further") == [] and manifest.pop("sha256")
    path.unlink()
    MANIFEST.write(path, manifest)
    assert "further" not in path.read_text()
    state = Checkpoints(tmp_path).read(64)
    assert state is not None and torch.equal(state[0]["a"], torch.ones(3)) and state[1] == {"step": 1}


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    *(("state.safetensors", damage) for damage in (cut, flip, Path.unlink)),
    *(("manifest.json", damage) for damage in (cut, Path.unlink, lambda path: path.write_text("{}"))),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_the_rows_with_it(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    directory = begin(tmp_path, TRIAL)
    train(directory, 1, 5)
    damage(directory.path / "checkpoints" / str(4 * 64) / name)
    assert_state(directory.newest_state(), 2 * 64)
    assert steps_of(directory) == [1, 2]
    train(directory, 3, 4)
    assert steps_of(directory) == [1, 2, 3, 4]
    assert_state(directory.newest_state(), 4 * 64)


def test_a_checkpoint_that_cannot_be_read_for_the_moment_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(begin(tmp_path, TRIAL), 1, 5)

    def fails(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr("gsae_ray.storage.checkpoints.file_hash", fails)
        begin(tmp_path, TRIAL).newest_state()
    successor = begin(tmp_path, TRIAL)
    assert_state(successor.newest_state(), 4 * 64)
    assert steps_of(successor) == [1, 2, 3, 4]


def test_without_a_whole_checkpoint_the_rows_are_cut_to_none(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    train(directory, 1, 1)
    assert directory.newest_state() is None
    assert directory.rows()[0] == []
    train(directory, 1, 5)
    for manifest in directory.path.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    assert directory.newest_state() is None
    assert directory.rows()[0] == []


def test_a_row_that_was_half_written_is_cut_away(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    train(directory, 1, 3)
    with (directory.path / "metrics-1.jsonl").open("a") as file:
        file.write('{"step": 256, "time')
    assert steps_of(directory) == [1, 2, 3]
    directory.newest_state()
    train(directory, 3, 4)
    assert steps_of(directory) == [1, 2, 3, 4]


def test_rows_that_a_machine_lost_in_its_crash_are_trained_again(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    train(directory, 1, 4)
    metrics = directory.path / "metrics-1.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-10])  # the checkpoint was synced to disk, the end of the rows was not
    assert_state(directory.newest_state(), 2 * 64)
    assert steps_of(directory) == [1, 2]


# ---- a full disk ----------------------------------------------------------------------------------------------------


def fill(disk: Path, leave: int) -> Path:
    """Takes the room on a disk but for so many bytes (whole pages)."""
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    ballast.write_bytes(bytes(room.f_bavail * room.f_bsize - leave))
    return ballast


PAGE = 4096


@pytest.mark.parametrize("leave", [0, PAGE, 2 * PAGE])
def test_a_checkpoint_that_does_not_fit_leaves_the_last_good_one_and_training_goes_on_when_there_is_room(
    small_disk: Path, leave: int
) -> None:
    directory = begin(small_disk, TRIAL)
    train(directory, 1, 5)
    ballast = fill(small_disk, leave)
    tensors, rest = state_at(6 * 64)
    tensors["large"] = torch.zeros(2 * PAGE)
    with pytest.raises(StorageFullError, match=str(directory.path)), disk_space_needed(directory.path):
        directory.append(6 * 64, row_metrics(6 * 64))
        directory.checkpoint(6 * 64, tensors, rest)
    ballast.unlink()
    successor = begin(small_disk, TRIAL)
    assert_state(successor.newest_state(), 4 * 64)
    assert steps_of(successor) == [1, 2, 3, 4]
    train(successor, 5, 8)
    assert steps_of(successor) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert_state(successor.newest_state(), 8 * 64)


@pytest.mark.parametrize("leave", [0, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE, 5 * PAGE, 6 * PAGE])
def test_going_on_while_the_disk_is_full_still_costs_no_checkpoint(small_disk: Path, leave: int) -> None:
    directory = begin(small_disk, TRIAL)
    for step in range(1, 101):  # two pages of rows
        directory.append(64 * step, row_metrics(64 * step))
    directory.checkpoint(100 * 64, *state_at(100 * 64))
    ballast = fill(small_disk, leave)
    with contextlib.suppress(StorageFullError), disk_space_needed(directory.path):
        assert_state(begin(small_disk, TRIAL).newest_state(), 100 * 64)
    ballast.unlink()
    successor = begin(small_disk, TRIAL)
    assert_state(successor.newest_state(), 100 * 64)
    assert steps_of(successor) == list(range(1, 101))


@pytest.mark.parametrize("leave", [0, PAGE, 2 * PAGE, 3 * PAGE])
def test_an_sae_that_does_not_fit_leaves_the_trial_unfinished_and_its_checkpoint(small_disk: Path, leave: int) -> None:
    directory = begin(small_disk, TRIAL)
    train(directory, 1, 4)
    ballast = fill(small_disk, leave)
    with contextlib.suppress(StorageFullError), disk_space_needed(directory.path):
        directory.finish(random_sae(TRIAL))
    ballast.unlink()
    if not directory.done:
        successor = begin(small_disk, TRIAL)
        assert_state(successor.newest_state(), 4 * 64)
        successor.finish(random_sae(TRIAL))
    assert saes.load(directory.path / "sae")
    assert steps_of(directory) == [1, 2, 3, 4]
