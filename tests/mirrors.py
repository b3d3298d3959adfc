"""A mirror, the server that it writes to, and trials to send."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from trials import FINGERPRINT, begin, expand, row_metrics

from gsae_ray.config.trial import TrialSpec
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.storage.trial_directory import Trial, TrialDirectory
from gsae_ray.tracking.mirror import Mirror
from gsae_ray.tracking.tags import KIND, UPDATED

TRIALS = expand(l1_coefficient=[1.0, 2.0, 4.0])
(ONE, *_) = TRIALS
LAUNCH_ID = "20260101-000000-abcd"


class Server:
    """An experiment of its own for each test."""

    _number = itertools.count()

    def __init__(self, uri: str) -> None:
        self.uri, self.experiment = uri, f"experiment {next(self._number)}"
        self.client = MlflowClient(uri)

    def mirror(
        self, launch_id: str = LAUNCH_ID, encoders: Sequence[int | None] = (None,), snapshots: Sequence[int] = ()
    ) -> Mirror:
        request = EvaluationRequest(FINGERPRINT, tuple(encoders), tuple(snapshots))
        mirror = Mirror(self.uri, self.experiment, launch_id, request)
        mirror.open_launch("small", {"model": "builtin", "trials": len(TRIALS)})
        return mirror

    def runs(self, kind: str = "trial") -> list[Run]:
        experiment = self.client.get_experiment_by_name(self.experiment)
        return list(self.client.search_runs([experiment.experiment_id], f"tags.`{KIND}` = '{kind}'"))

    def run(self) -> Run:
        (run,) = self.runs()
        return run

    def history(self, run: Run, name: str) -> list[tuple[int, int, float]]:
        points = self.client.get_metric_history(run.info.run_id, name)
        return sorted((point.step, point.timestamp, point.value) for point in points)

    def steps(self, name: str = "train/loss") -> list[int]:
        return [step for step, _, _ in self.history(self.run(), name)]

    def snapshot(self) -> dict[str, Any]:
        """All that can be seen of the experiment."""
        return {
            run.info.run_id: {
                "info": (run.info.status, run.info.run_name, run.info.start_time, run.info.end_time),
                "params": run.data.params,
                "tags": {k: v for k, v in run.data.tags.items() if k != UPDATED},
                "metrics": {name: self.history(run, name) for name in run.data.metrics},
                "artifacts": [
                    file.path
                    for folder in ("sae", "evaluation")
                    for file in self.client.list_artifacts(run.info.run_id, folder)
                ],
            }
            for kind in ("launch", "trial")
            for run in self.runs(kind)
        }


def pair(root: Path, steps: int = 0, trial: TrialSpec = ONE) -> Trial:
    return Trial(trial, begin(root, trial, steps))


def append(directory: TrialDirectory, *steps: int, **metrics: float) -> None:
    for step in steps:
        directory.append(64 * step, row_metrics(64 * step) | metrics)


def fail_in_call(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Does as `function` does, but for one call."""
    calls = itertools.count(1)

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise ConnectionError("connection reset\nby peer")
        return function(*args, **kwargs)

    return call
