"""A trial's directory: its rows, who may write, and its end."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import DAMAGES as OF_JSON
from training_steps import TRIAL, assert_state, state_at, steps_of, train
from trials import FINGERPRINT, begin, evaluation, logged, random_sae, row_metrics

from gsae_ray import saes
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import ReplacedError, StaleAttemptError
from gsae_ray.files import LocalStorage
from gsae_ray.storage.evaluations import EvaluationRequest, TrialStatus
from gsae_ray.storage.metric_rows import ROW
from gsae_ray.storage.trial_directory import Attempt, TrialDirectory, forget_damaged

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
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=3.9), asked=4)
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
