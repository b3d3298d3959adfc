"""Tune's trials without Ray."""

from __future__ import annotations

from pathlib import Path

from gsae_ray.activations.layout import Layout
from gsae_ray.actors.trial_actor import SAETrial, TrialContext
from gsae_ray.storage.trial_directory import TrialDirectory
from gsae_ray.training.trainer import Trainer


def begun(folder: Path, trainer: Trainer) -> SAETrial:
    """Returns a trial that trains, as Tune has one, without Ray."""
    trial = SAETrial.__new__(SAETrial)
    trial.trial = trainer.trial
    trial.trainer = trainer
    trial.directory = TrialDirectory(folder)
    trial.directory.begin_attempt(trainer.trial)
    trial.directory.newest_state()
    trial.context = TrialContext(
        launch=folder,
        session=0,
        directories={},
        parents={},
        layout=Layout((), {}, "float32", 1),
        threads=1,
        gpu=False,
        evaluate_every_tokens=None,
        metadata={},
    )
    trial.source = trial.failure = trial.stopped = None
    trial._newest_row = 0
    trial._newest_metrics = {}
    return trial
