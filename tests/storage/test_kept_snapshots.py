"""Snapshots in storage: there once, whole, or not at all; a trial is done when those that it has are evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage import cut, flip
from trials import FINGERPRINT, begin, evaluation, expand, logged, random_sae

from gsae_ray.errors import DamagedError, StaleAttemptError
from gsae_ray.saes import SAE, load, to_bytes
from gsae_ray.storage.evaluations import EvaluationRequest, Snapshot
from gsae_ray.storage.trial_directory import TrialDirectory, forget_damaged

(TRIAL,) = expand(snapshots_at=[128, 512])
REQUEST = EvaluationRequest(FINGERPRINT, (None,), (128, 512))
FIRST, SECOND = random_sae(TRIAL, seed=1), random_sae(TRIAL, seed=2)


def refuse() -> SAE:
    raise AssertionError("it is made again")


def test_a_snapshot_that_is_whole_is_not_made_again(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    directory.keep_snapshot(128, lambda: FIRST)
    successor = TrialDirectory(directory.path)
    successor.begin_attempt(TRIAL)
    successor.keep_snapshot(128, refuse)
    assert successor.snapshots.tokens() == [128]
    folder = successor.snapshots.path(128)
    assert to_bytes(load(folder)) == to_bytes(FIRST)
    assert successor.snapshots.check(128) == successor.snapshots.content(128)
    directory_files = sorted(path.name for path in folder.iterdir())
    assert directory_files == ["cfg.json", "sae_weights.safetensors"], "as in sae/"


@pytest.mark.parametrize("name", ["128/cfg.json", "128/sae_weights.safetensors", "128.json"])
def test_a_damaged_one_is_made_again_by_training_that_comes_past_it(tmp_path: Path, name: str) -> None:
    directory = begin(tmp_path, TRIAL)
    directory.keep_snapshot(128, lambda: FIRST)
    flip(directory.path / "snapshots" / name)
    directory.keep_snapshot(128, lambda: SECOND)
    assert to_bytes(load(directory.snapshots.path(128))) == to_bytes(SECOND)
    assert directory.snapshots.check(128) is not None


def test_an_attempt_that_was_replaced_leaves_nothing(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)

    def slowly() -> SAE:
        TrialDirectory(directory.path).begin_attempt(TRIAL)
        return FIRST

    with pytest.raises(StaleAttemptError):
        directory.keep_snapshot(128, slowly)
    assert directory.snapshots.tokens() == [] and directory.snapshots.check(128) is None
    newest = TrialDirectory(directory.path)
    newest.begin_attempt(TRIAL)
    newest.keep_snapshot(128, lambda: SECOND)
    newest.finish(random_sae(TRIAL))
    assert sorted(path.name for path in (directory.path / "snapshots").iterdir()) == ["128", "128.json"]


def test_a_trial_is_done_when_the_snapshots_that_it_has_are_evaluated(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    directory.keep_snapshot(512, lambda: FIRST)
    assert directory.status(REQUEST).missing == (None, Snapshot(512)), "it has no other, and gets none any more"
    directory.finish(random_sae(TRIAL))
    directory.save_evaluation(FINGERPRINT, 1024, evaluation())
    status = directory.status(REQUEST)
    assert status.missing == (Snapshot(512),) and not status.done and not status.evaluated
    assert directory.status(REQUEST._replace(snapshots=())).done, "for a launch that asks for none"
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=30), Snapshot(512))
    assert directory.status(REQUEST).done
    record = directory.evaluation(FINGERPRINT, Snapshot(512))
    assert record is not None
    assert (record["step"], record["metrics"]) == (512, logged(evaluation(l0=30), "snapshot"))
    assert record["sae"] == directory.snapshots.content(512)
    with pytest.raises(DamagedError, match="not there any more"):
        directory.save_evaluation(FINGERPRINT, 1024, evaluation(), Snapshot(128))


def test_a_launch_forgets_a_damaged_snapshot_in_one_line_and_keeps_the_trial(tmp_path: Path) -> None:
    directory = begin(tmp_path, TRIAL)
    for tokens in (128, 512):
        directory.keep_snapshot(tokens, lambda: FIRST)
    directory.finish(random_sae(TRIAL))
    directory.save_evaluation(FINGERPRINT, 1024, evaluation())
    for tokens in (128, 512):
        directory.save_evaluation(FINGERPRINT, 1024, evaluation(), Snapshot(tokens))
    assert forget_damaged([directory]) == []
    cut(directory.snapshots.path(128) / "sae_weights.safetensors")
    (line,) = forget_damaged([directory])
    assert f"{directory.snapshots.path(128)}: these files are damaged" in line and "not trained again" in line
    assert forget_damaged([directory]) == []
    assert directory.done and directory.status(REQUEST).done
    assert list(directory.evaluations(REQUEST)) == [None, Snapshot(512)]
