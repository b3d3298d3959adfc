"""Tune's trials without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from gsae_ray.actors.trial_actor import SAETrial
from gsae_ray.storage.trial_directory import TrialDirectory
from gsae_ray.training.trainer import Trainer


def begun(folder: Path, trainer: Trainer) -> SAETrial:
    """Tune's shell round a trainer, without Ray."""
    trial = SAETrial.__new__(SAETrial)
    trial.trial = trainer.trial
    trial.trainer = trainer
    trial.directory = TrialDirectory(folder)
    trial.directory.begin_attempt(trainer.trial)
    trial.directory.newest_state()
    trial.context = SimpleNamespace(evaluate_every_tokens=None)
    trial.source = trial.failure = trial.stopped = None
    trial._rows_end = 0
    return trial
