"""A trial's directory: what survives a kill at any moment, and who may write."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import DAMAGES as OF_JSON
from trials import FINGERPRINT, begin, evaluation, expand, logged, random_sae, row_metrics

from gsae_ray import saes
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import ReplacedError, StaleAttemptError, StorageFullError
from gsae_ray.files import LocalStorage, disk_space_needed
from gsae_ray.storage.evaluations import EvaluationRequest, TrialStatus
from gsae_ray.storage.metric_rows import ROW
from gsae_ray.storage.trial_directory import Attempt, TrialDirectory, forget_damaged

(TRIAL,) = expand()


def state_at(tokens: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(tokens)
    tensors = {
        "sae.W_enc": torch.randn(8, 16, generator=generator),
        "adam.step.W_enc": torch.tensor(float(tokens)),
        "bf16": torch.randn(3, generator=generator).bfloat16(),
    }
    return tensors, {"step": tokens // 64, "position": tokens, "scale": 0.1 + 0.2}


def train(directory: TrialDirectory, first: int, last: int, checkpoint_every: int = 2) -> None:
    """Rows `first` to `last`, a row every 64 tokens, with checkpoints in between."""
    for step in range(first, last + 1):
        directory.append(64 * step, row_metrics(64 * step))
        if step % checkpoint_every == 0:
            directory.checkpoint(64 * step, *state_at(64 * step))


def steps_of(directory: TrialDirectory) -> list[int]:
    return [row["step"] // 64 for row in directory.rows()[0]]


def assert_state(actual: tuple[dict[str, torch.Tensor], dict[str, Any]] | None, tokens: int) -> None:
    assert actual is not None
    tensors, rest = state_at(tokens)
    assert actual[1] == rest
    assert actual[0].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert actual[0][name].dtype == tensor.dtype
        assert torch.equal(actual[0][name], tensor)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


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


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_read_whole_and_go_on_from_the_offset(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL, steps=2)
    rows, offset = directory.rows()
    assert [row["metrics"] for row in rows] == [row_metrics(64), row_metrics(128)]
    assert all(row["timestamp"] > 1.6e12 for row in rows), "milliseconds"
    with (directory.path / "metrics-1.jsonl").open("a") as file:
        line = ROW.encode({"step": 192, "timestamp": 1, "metrics": {}}).decode()
        file.write(line[:15])
        file.flush()
        assert directory.rows(offset) == ([], offset)
        file.write(line[15:] + line[:5])
    (row,), end = directory.rows(offset)
    assert row == {"step": 192, "timestamp": 1, "metrics": {}}
    assert directory.rows(end) == ([], end)


# ---- who may write --------------------------------------------------------------------------------------------------


def contents(directory: TrialDirectory) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "write",
    [
        lambda d: d.append(999, {}),
        lambda d: d.checkpoint(999, *state_at(999)),
        lambda d: d.finish(random_sae(TRIAL)),
        lambda d: d.fail("too late"),
    ],
    ids=["append", "checkpoint", "finish", "fail"],
)
def test_what_an_older_attempt_writes_is_refused(tmp_path: Path, write: Callable[[TrialDirectory], None]) -> None:
    older = begin(tmp_path, TRIAL)
    train(older, 1, 2)
    newer = begin(tmp_path, TRIAL)
    assert (older.attempt, newer.attempt, older.newest_attempt) == (1, 2, 2)
    before = contents(newer)
    with pytest.raises(StaleAttemptError, match="attempt 1 writes after 2 began"):
        write(older)
    assert contents(newer) == before
    write(newer)


def test_a_row_that_an_older_attempt_was_about_to_write_is_not_among_those_of_the_newer_one(tmp_path: Path) -> None:
    older = begin(tmp_path, TRIAL)
    train(older, 1, 3)
    newer = begin(tmp_path, TRIAL)
    older._check_attempt = lambda: None  # type: ignore[method-assign]  # it had looked, and was stopped then
    newer.newest_state()
    older.append(64 * 9, row_metrics(64 * 9))
    train(newer, 3, 4)
    assert steps_of(newer) == [1, 2, 3, 4]
    newest = begin(tmp_path, TRIAL)
    newest.newest_state()
    assert steps_of(newest) == [1, 2, 3, 4]


def test_a_driver_that_was_replaced_cannot_begin_an_attempt(tmp_path: Path) -> None:
    path = tmp_path / TRIAL.directory_name
    TrialDirectory(path).begin_attempt(TRIAL, session=7)
    with pytest.raises(ReplacedError, match="another driver has taken the sweep over"):
        TrialDirectory(path).begin_attempt(TRIAL, session=6)
    assert TrialDirectory(path).begin_attempt(TRIAL, session=8) == 2


def test_two_processes_that_begin_at_once_do_not_share_a_number(tmp_path: Path) -> None:
    """One was suspended after it had looked for the newest attempt, until its driver was replaced."""
    first = begin(tmp_path, TRIAL)

    class Suspended(TrialDirectory):
        looks = [first.newest_begun]

        @property
        def newest_begun(self) -> Attempt:
            return self.looks.pop() if self.looks else super().newest_begun

    assert TrialDirectory(first.path).begin_attempt(TRIAL, session=2) == 2
    with pytest.raises(ReplacedError):
        Suspended(first.path).begin_attempt(TRIAL, session=1)
    Suspended.looks = [{"attempt": 1, "session": 0}]
    assert Suspended(first.path).begin_attempt(TRIAL, session=2) == 3
    assert TrialDirectory(first.path).newest_begun == {"attempt": 3, "session": 2}


def test_a_damaged_attempt_keeps_nobody_from_beginning_the_next(tmp_path: Path) -> None:
    """Whatever bit is flipped: a higher session is no driver's, a lower number is no attempt's."""
    whole = (begin(tmp_path, TRIAL).path / "attempts/1.json").read_bytes()
    for byte in range(len(whole)):
        data = bytearray(whole)
        data[byte] ^= 1 << byte % 4
        (tmp_path / TRIAL.directory_name / "attempts/1.json").write_bytes(data)
        directory = TrialDirectory(tmp_path / TRIAL.directory_name)
        assert directory.begin_attempt(TRIAL) == 2
        (directory.path / "attempts/2.json").unlink()


def test_rows_of_an_attempt_that_is_gone_are_not_those_of_the_next(tmp_path: Path) -> None:
    for _ in range(3):
        directory = begin(tmp_path, TRIAL)
    train(directory, 1, 4)
    shutil.rmtree(directory.path / "attempts")
    successor = begin(tmp_path, TRIAL)
    assert_state(successor.newest_state(), 4 * 64)
    train(successor, 5, 6)
    assert steps_of(successor) == [1, 2, 3, 4, 5, 6]


def test_an_older_attempt_cannot_cut_the_rows_of_a_newer_one(tmp_path: Path) -> None:
    older = begin(tmp_path, TRIAL)
    newer = begin(tmp_path, TRIAL)
    train(newer, 1, 5)
    with contextlib.suppress(StaleAttemptError):
        older.newest_state()
    assert steps_of(newer) == [1, 2, 3, 4, 5]


def test_a_directory_says_which_trial_it_is(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    stored = json.loads((directory.path / "trial.json").read_text())
    assert TrialSpec.from_json(stored) == TRIAL
    assert directory.path.name == TRIAL.directory_name


# ---- the end --------------------------------------------------------------------------------------------------------


def test_finish_leaves_a_loadable_sae_and_done(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    train(directory, 1, 4)
    sae = random_sae(TRIAL)
    directory.finish(sae)
    assert directory.done
    assert TrialDirectory(directory.path).done
    loaded = saes.load(directory.path / "sae")
    assert loaded.cfg == sae.cfg
    for name, tensor in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert steps_of(directory) == [1, 2, 3, 4]
    assert not (directory.path / "checkpoints").exists()


def test_a_kill_while_the_sae_is_saved_leaves_the_trial_unfinished_and_resumable(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    train(directory, 1, 4)

    class Killed(LocalStorage):
        def replace(self, path: Path, data: bytes) -> None:
            if path.name == "cfg.json":
                path.write_text("{")
                raise KeyboardInterrupt
            super().replace(path, data)

    with pytest.raises(KeyboardInterrupt):
        directory.storage = Killed()
        directory.finish(random_sae(TRIAL))
    successor = begin(tmp_path, TRIAL)
    assert not successor.done
    assert_state(successor.newest_state(), 4 * 64)
    successor.finish(random_sae(TRIAL))
    assert successor.done
    assert saes.load(successor.path / "sae")


def test_a_failure_is_kept_until_it_is_forgotten(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    directory.fail("the loss is not finite after 640 tokens")
    assert TrialDirectory(directory.path).failure == "the loss is not finite after 640 tokens"
    assert not directory.done
    directory.forget_failure()
    assert directory.failure is None
    directory.forget_failure()  # also where there is none


@pytest.mark.parametrize("damage", OF_JSON.values(), ids=OF_JSON)
def test_a_launch_takes_no_damaged_mark_for_an_end(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    done, failed, whole = (begin(tmp_path / name, TRIAL) for name in ("done", "failed", "whole"))
    for directory in (done, whole):
        directory.finish(random_sae(TRIAL))
    failed.fail("NaN")
    damage(done.path / "DONE")
    damage(failed.path / "FAILED")
    told = forget_damaged([done, failed, whole])
    assert (done.ended, failed.ended, whole.done) == (False, False, True)
    deleted = damage is Path.unlink
    assert told == [] if deleted else len(told) == 2 and str(done.path / "DONE") in told[0] and "FAILED" in told[1]


def test_an_evaluation_is_found_by_the_fingerprint_of_what_it_was_measured_on(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    directory.finish(random_sae(TRIAL))
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=20))
    directory.save_evaluation("e" * 64, 1024, evaluation(l0=21))
    found = directory.evaluation(FINGERPRINT)
    assert found is not None
    assert (found["step"], found["metrics"]) == (1024, logged(evaluation(l0=20)))
    assert found["sequences"] == evaluation(l0=20).sequences
    assert directory.evaluation("e" * 64)["metrics"] == logged(evaluation(l0=21))  # type: ignore[index]
    assert directory.evaluation("d" * 64) is None


def test_evaluations_by_pursuit_are_kept_apart_so_that_one_target_more_costs_only_itself(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    directory.finish(random_sae(TRIAL))
    request = EvaluationRequest(FINGERPRINT, (None, 4, 8))
    assert directory.status(request).missing == (None, 4, 8)
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=20))
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=3.9), pursuit_l0=4)
    assert directory.status(request).missing == (8,)
    assert directory.status(EvaluationRequest("e" * 64, (None, 4))).missing == (None, 4)
    own, pursuit = directory.evaluation(FINGERPRINT), directory.evaluation(FINGERPRINT, 4)
    assert own is not None and pursuit is not None
    assert own["metrics"] == logged(evaluation(l0=20))
    assert (pursuit["step"], pursuit["metrics"]) == (4, logged(evaluation(l0=3.9), "pursuit"))
    assert directory.evaluation(FINGERPRINT, 8) is None


def test_law_7_nothing_but_json_and_safetensors_is_written(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    seen: set[str] = set()

    def look() -> None:
        files = [path for path in directory.path.rglob("*") if path.is_file()]
        seen.update(path.suffix or path.name for path in files)
        assert not [path for path in files if path.name.startswith(".")], "no temporary files stay"

    train(directory, 1, 4)
    look()
    directory.fail("NaN")
    look()
    directory.forget_failure()
    directory.finish(random_sae(TRIAL))
    directory.save_evaluation(FINGERPRINT, 1024, evaluation())
    look()
    assert seen == {".json", ".jsonl", ".safetensors", "DONE", "FAILED"}
    for path in directory.path.rglob("*.json"):
        json.loads(path.read_text())
    assert json.loads((directory.path / "DONE").read_text())["attempt"] == 1


def test_a_status_says_what_is_left_to_train_and_to_evaluate_and_what_failed_for_good(tmp_path: Path) -> None:
    request = EvaluationRequest(FINGERPRINT, (None, 4))
    directory = begin(tmp_path, TRIAL)
    assert directory.status(request) == TrialStatus(trained=False, missing=(None, 4), outdated=(), failure=None)
    directory.fail("NaN")
    assert directory.status(request) == TrialStatus(trained=False, missing=(None, 4), outdated=(), failure="NaN")
    directory.forget_failure()
    directory.finish(random_sae(TRIAL))
    directory.save_evaluation(FINGERPRINT, 1024, evaluation())
    directory.fail_evaluation("no number")
    assert directory.status(request) == TrialStatus(trained=True, missing=(4,), outdated=(), failure="no number")
    assert not directory.status(request).done
    # For a launch that has all it asks for, the failure is of another one's evaluations.
    own = directory.status(EvaluationRequest(FINGERPRINT, (None,)))
    assert own == TrialStatus(trained=True, missing=(), outdated=(), failure=None)
    assert own.done
