"""A trial that is stopped: it keeps what it has, and only what a successor can go on from bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from trainers import BATCH, make, run, same, weights
from tune_trials import begun

from gsae_ray.saes import load
from gsae_ray.storage.trial_directory import TrialDirectory


def test_a_trial_that_is_stopped_between_two_intervals_goes_on_from_there(tmp_path: Path) -> None:
    training = make("gated")
    trial = begun(tmp_path / "trial", training)
    for _ in range(3):
        trial.step()
    at = training.tokens
    trial.cleanup()
    assert trial.directory.newest_checkpoint == at
    successor = TrialDirectory(tmp_path / "trial")
    successor.begin_attempt(trial.trial)
    state = successor.newest_state()
    assert state is not None
    trainer = make("gated")
    trainer.restore(*state)
    assert trainer.tokens == at
    run(trainer)
    whole = make("gated")
    run(whole)
    assert same(weights(trainer), weights(whole))


def test_tune_gets_the_metrics_of_each_row_with_tokens_as_the_time(tmp_path: Path) -> None:
    """So that a scheduler can act on them; it wants them in the last result, too."""
    trial = begun(tmp_path / "trial", make("gated"))
    trial.context.modules[trial.trial.site] = "model.layers.0:output"
    results = [trial.step() for _ in range(2)]
    rows, _ = trial.directory.rows()
    assert len(rows) == 2 and all("train/loss" in row["metrics"] for row in rows)
    for result, row in zip(results, rows, strict=True):
        assert result["tokens"] == row["step"] and not result["done"]
        assert row["metrics"].items() <= result.items()
    while not (result := trial.step())["done"]:
        pass
    rows, _ = trial.directory.rows()
    assert trial.directory.done and result["tokens"] == rows[-1]["step"]
    assert rows[-1]["metrics"].items() <= result.items()
    assert load(tmp_path / "trial" / "sae").cfg.metadata["module"] == "model.layers.0:output"


def test_the_last_result_of_a_trial_that_fails_has_the_metrics_of_its_newest_row(tmp_path: Path) -> None:
    trial = begun(tmp_path / "trial", make("gated"))
    first = trial.step()
    trial.failure = "the loss is not finite"
    last = trial.step()
    assert last["done"] and last["failure"] == trial.directory.failure == "the loss is not finite"
    assert last["train/loss"] == first["train/loss"]


def test_a_trial_that_fails_within_an_interval_saves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make("gated")
    trial = begun(tmp_path / "trial", trainer)
    trial.step()
    before = trial.directory.newest_checkpoint
    read = trainer.stream.read

    def breaks(rows: int) -> Tensor:
        read(rows)  # the stream has moved on, the step has not
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.stream, "read", breaks)
    with pytest.raises(torch.OutOfMemoryError):
        trial.step()
    trial.cleanup()
    assert trial.directory.newest_checkpoint == before


def test_a_trial_keeps_its_snapshots_with_where_they_come_from(tmp_path: Path) -> None:
    """Within an interval; the finished SAE says what it says without any."""
    folders = {}
    for name, snapshots in (("with", [11 * BATCH + 3]), ("without", [])):
        trial = begun(tmp_path / name, make("gated", tokens=30 * BATCH, snapshots_at=snapshots))
        while not trial.step()["done"]:
            pass
        folders[name] = trial.directory
    for file in ("cfg.json", "sae_weights.safetensors"):
        with_them, without = ((folder.path / "sae" / file).read_bytes() for folder in folders.values())
        assert with_them == without
    kept = folders["with"].snapshots
    assert kept.tokens() == [11 * BATCH + 3] and folders["without"].snapshots.tokens() == []
    snapshot = load(kept.path(11 * BATCH + 3)).cfg
    assert snapshot.metadata["snapshot_at"] == 11 * BATCH + 3
    assert "snapshot_at" in repr(load(kept.path(11 * BATCH + 3)))
    finished = load(folders["with"].path / "sae").cfg.metadata
    assert {**finished, "snapshot_at": 11 * BATCH + 3} == snapshot.metadata
