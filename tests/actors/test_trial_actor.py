"""A trial that is stopped: it keeps what it has, and only what a successor can go on from bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from trainers import make, run, same, weights
from tune_trials import begun

from gsae_ray.storage.trial_directory import TrialDirectory


def test_a_trial_that_is_stopped_between_two_intervals_goes_on_from_there(tmp_path: Path) -> None:
    trial = begun(tmp_path / "trial", make("gated"))
    for _ in range(3):
        trial._train(trial.trainer)
    at = trial.trainer.tokens
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


def test_a_trial_that_fails_within_an_interval_saves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = begun(tmp_path / "trial", make("gated"))
    trial._train(trial.trainer)
    before = trial.directory.newest_checkpoint
    read = trial.trainer.stream.read

    def breaks(rows: int) -> Tensor:
        read(rows)  # the stream has moved on, the step has not
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trial.trainer.stream, "read", breaks)
    with pytest.raises(torch.OutOfMemoryError):
        trial._train(trial.trainer)
    trial.cleanup()
    assert trial.directory.newest_checkpoint == before
