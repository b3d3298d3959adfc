"""Trials and launches live in any `Storage`: here in one that has no files, as an object store has none."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from trials import FINGERPRINT, REQUEST, evaluation, expand, logged, random_sae, row_metrics

from gsae_ray import saes
from gsae_ray.config.sweep import Sweep
from gsae_ray.errors import DamagedError, StaleAttemptError, UserError
from gsae_ray.files import LOCAL, Storage
from gsae_ray.storage.driver_lock import driver_lock
from gsae_ray.storage.evaluations import Snapshot
from gsae_ray.storage.launch_directory import (
    begin_launch,
    check_resume,
    find_trial,
    finish_launch,
    recorded_overrides,
    trial_folder,
)
from gsae_ray.storage.trial_directory import TrialDirectory, forget_damaged

(TRIAL,) = expand()
ROOT = Path("/no/such/place")


class MemoryStorage:
    """Contents by path. Folders are there while something is in them."""

    def __init__(self, scratch: Path) -> None:
        self.files: dict[Path, bytes] = {}
        self.times: dict[Path, float] = {}
        self.scratch = scratch

    def _within(self, folder: Path) -> list[Path]:
        return [path for path in self.files if folder in path.parents]

    def read(self, path: Path, start: int = 0) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self.files[path][start:]

    def exists(self, path: Path) -> bool:
        return path in self.files or bool(self._within(path))

    def names(self, folder: Path) -> list[str]:
        return sorted({path.relative_to(folder).parts[0] for path in self._within(folder)})

    def modified(self, path: Path) -> float:
        self.read(path)
        return self.times[path]

    def local(self, path: Path) -> Path:
        if not self.exists(path):
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        copy = self.scratch / str(time.monotonic_ns()) / path.name
        for source in [path] if path in self.files else self._within(path):
            target = copy / source.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.files[source])
        return copy

    def create(self, path: Path) -> None:
        if path in self.files:
            raise FileExistsError(errno.EEXIST, "there is one", str(path))
        self.replace(path, b"")

    def replace(self, path: Path, data: bytes) -> None:
        self.files[path], self.times[path] = data, time.time()

    def append(self, path: Path, data: bytes) -> None:
        self.replace(path, self.files.get(path, b"") + data)

    def sync(self, path: Path) -> None:
        self.read(path)

    def rename(self, folder: Path, target: Path) -> None:
        for path in self._within(folder):
            self.replace(target / path.relative_to(folder), self.files.pop(path))

    def make_folder(self, folder: Path) -> None:
        pass

    def remove(self, path: Path) -> None:
        self.files.pop(path, None)

    def remove_tree(self, folder: Path) -> None:
        for path in self._within(folder):
            del self.files[path]

    def remove_empty(self, folder: Path) -> None:
        if self._within(folder):
            raise OSError(errno.ENOTEMPTY, "there is something in it", str(folder))

    def expire(self, path: Path) -> None:
        self.files[path], self.times[path] = b"", 0.0


@pytest.fixture(params=["memory", "local"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, Path]:
    """A storage, and a folder in it."""
    return (MemoryStorage(tmp_path), ROOT) if request.param == "memory" else (LOCAL, tmp_path / "place")


def state_at(tokens: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return {"w": torch.full((3,), float(tokens))}, {"tokens": tokens}


def train(directory: TrialDirectory, first: int, last: int) -> None:
    for step in range(first, last + 1):
        directory.append(64 * step, row_metrics(64 * step))
        if step % 2 == 0:
            directory.checkpoint(64 * step, *state_at(64 * step))


def test_a_trial_lives_in_any_storage(place: tuple[Storage, Path]) -> None:
    storage, root = place
    path = root / TRIAL.directory_name
    first = TrialDirectory(path, storage)
    assert first.begin_attempt(TRIAL, session=1, pid=7) == 1
    assert first.newest_state() is None
    train(first, 1, 7)
    second = TrialDirectory(path, storage)
    assert second.begin_attempt(TRIAL, session=1) == 2
    with pytest.raises(StaleAttemptError):
        first.append(512, {})
    found = second.newest_state()
    assert found is not None and found[1] == {"tokens": 384} and torch.equal(found[0]["w"], torch.full((3,), 384.0))
    assert [row["step"] for row in second.rows()[0]] == [64 * step for step in range(1, 7)]
    _, cursor = second.rows()
    train(second, 7, 8)
    assert [row["step"] for row in second.rows(cursor)[0]] == [448, 512]
    sae = random_sae(TRIAL)
    second.finish(sae)
    assert second.done and second.newest_checkpoint == 0
    assert second.status(REQUEST).missing == (None,)
    second.save_evaluation(FINGERPRINT, 1024, evaluation())
    assert second.status(REQUEST).done
    record = second.evaluation(FINGERPRINT)
    assert record is not None and record["metrics"] == logged(evaluation())
    content = second.check_done()
    assert content is not None
    loaded = saes.load(storage.local(path / "sae"))
    assert all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), loaded.state_dict().values(), strict=True))
    storage.append(path / "sae/cfg.json", b" ")
    with pytest.raises(DamagedError, match="cfg.json: this file is damaged"):
        second.check_done()
    storage.remove(path / "sae/cfg.json")
    (line,) = forget_damaged([second])
    assert "cfg.json: this file is damaged" in line and not second.done


def test_what_a_trial_leaves_is_byte_for_byte_the_same_in_any_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000_000_000)
    memory = MemoryStorage(tmp_path / "copies")
    for storage, root in ((memory, ROOT), (LOCAL, tmp_path / "place")):
        directory = TrialDirectory(root, storage)
        directory.begin_attempt(TRIAL)
        directory.newest_state()
        train(directory, 1, 5)
        directory.keep_snapshot(200, lambda: random_sae(TRIAL, seed=1))
        directory.finish(random_sae(TRIAL))
        directory.save_evaluation(FINGERPRINT, 1024, evaluation())
        directory.save_evaluation(FINGERPRINT, 1024, evaluation(), Snapshot(200))
    on_disk = {path: path.read_bytes() for path in (tmp_path / "place").rglob("*") if path.is_file()}
    assert {path.relative_to(ROOT): data for path, data in memory.files.items()} == {
        path.relative_to(tmp_path / "place"): data for path, data in on_disk.items()
    }


def test_a_snapshot_lives_in_any_storage(place: tuple[Storage, Path]) -> None:
    storage, root = place
    directory = TrialDirectory(root, storage)
    directory.begin_attempt(TRIAL)
    for _ in range(2):  # the second time it is there
        directory.keep_snapshot(200, lambda: random_sae(TRIAL, seed=1))
        assert directory.snapshots.tokens() == [200] and directory.snapshots.check(200) is not None
    storage.append(root / "snapshots/200/cfg.json", b" ")
    (line,) = forget_damaged([directory])
    assert "snapshots/200: these files are damaged" in line and directory.snapshots.tokens() == []
    directory.keep_snapshot(200, lambda: random_sae(TRIAL, seed=1))
    assert directory.snapshots.check(200) is not None


def test_a_launch_and_its_driver_live_in_any_storage(place: tuple[Storage, Path]) -> None:
    storage, root = place
    folder = root / "small"
    sweep = Sweep.model_validate(
        {
            "name": "small",
            "model": {"name": "builtin"},
            "dataset": {"name": "builtin"},
            "sites": {"layers": [1], "points": ["resid_post"]},
            "saes": [{"architecture": "standard", "widths": [8], "l1_coefficient": [1.0]}],
            "training": {"tokens": 8192, "lr": 1e-3},
        }
    )
    with driver_lock(folder, storage=storage) as driver:
        assert driver.session == 1
        with pytest.raises(UserError, match="another driver"), driver_lock(folder, storage=storage):
            pass
    assert not storage.exists(folder), "a sweep that has not begun leaves nothing behind"
    with pytest.raises(UserError, match="no launch"):
        check_resume(folder, sweep, [TRIAL], True, storage)
    with driver_lock(folder, storage=storage):
        launch, notices = begin_launch(folder, sweep, [TRIAL], False, ["training.lr=1"], storage)
        assert notices == [] and recorded_overrides(folder, storage) == ["training.lr=1"]
    with driver_lock(folder, storage=storage) as driver:
        assert driver.session == 2
        assert begin_launch(folder, sweep, [TRIAL], True, storage=storage) == (launch, [])
        assert len(json.loads(storage.read(folder / "launches" / launch / "versions.json"))) == 2
        finish_launch(folder, launch, driver.session, storage)
    assert begin_launch(folder, sweep, [TRIAL], "auto", storage=storage)[0] != launch
    assert find_trial(folder, TRIAL.identity, storage) is None
    begun = TrialDirectory(trial_folder(folder, TRIAL, storage), storage)
    begun.begin_attempt(TRIAL)
    assert find_trial(folder, TRIAL.identity, storage) == begun.path
