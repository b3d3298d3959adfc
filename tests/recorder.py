"""Launches recorded as a driver does, for what reads results."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mlflow_stores import new_store
from trials import FINGERPRINT, begin, expand, finish, row_metrics

from gsae_ray import saes
from gsae_ray.config.trial import TrialSpec
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.mirror import Mirror

L1 = [1.0, 2.0, 4.0, 8.0]
GATED_1, GATED_2 = expand("gated", l1_coefficient=L1), expand("gated", layers=(2,), l1_coefficient=L1)
STANDARD_1 = expand("standard", l1_coefficient=[0.5], seeds=[7], lr=5e-4)
OLDER, NEWER = "20260101-100000-aaaa", "20260102-100000-bbbb"

End = dict[str, float] | str
"""A trial's evaluation, "failed" or "running"."""


class Recorder:
    """Records launches as a driver does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = new_store(folder)

    def record(
        self,
        experiment: str,
        launch: str,
        trials: Sequence[tuple[TrialSpec, End]],
        fingerprint: str = FINGERPRINT,
        pursuit: Mapping[int, Evaluation] | None = None,
    ) -> None:
        time.sleep(0.002)  # launches are told apart by when they started, in milliseconds
        mirror = Mirror(self.uri, experiment, launch, EvaluationRequest(fingerprint, (None, *(pursuit or ()))))
        mirror.open_launch("small", {})
        pairs = []
        for trial, end in trials:
            directory = begin(self.folder / experiment / launch, trial)
            directory.append(64, row_metrics(64) | {"train/sink_share": 0.25, "train/dead_fraction": 0.125})
            if isinstance(end, dict):
                finish(directory, trial, fingerprint, pursuit, **end)
            elif end == "failed":
                directory.fail("NaN")
            pairs.append(Trial(trial, directory))
        mirror.sync(pairs)
        mirror.close("FINISHED")

    def saved(self, experiment: str, launch: str, trial: TrialSpec) -> saes.SAE:
        return saes.load(self.folder / experiment / launch / trial.directory_name / "sae")


def ends(*values: tuple[float, float], **metrics: float) -> list[End]:
    return [{"l0": l0, "loss_recovered": loss_recovered, **metrics} for l0, loss_recovered in values]


def assert_same_weights(one: saes.SAE, other: saes.SAE) -> None:
    weights, expected = one.state_dict(), other.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
