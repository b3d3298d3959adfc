"""Ratings of features in MLflow: metrics, a tag and a file of trials' runs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient

from gsae_ray.storage.ratings import RATINGS as FILE
from gsae_ray.storage.ratings import RATINGS_FILE, summary_of
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.runs import find_run, recorded
from gsae_ray.tracking.tags import LAUNCH, RATINGS, TRIAL


def record_ratings(
    tracking_uri: str | None, experiment: str, launch_id: str, trials: Sequence[Trial], fingerprint: str
) -> None:
    """Brings MLflow up to date with the ratings of a launch that it has recorded.

    Args:
        tracking_uri: of MLflow.
        experiment: that of the launch.
        launch_id: the launch's id.
        trials: its finished trials.
        fingerprint: of its held-out contexts.

    Raises:
        UserError: MLflow has no such experiment, or does not answer.
    """
    with recorded(tracking_uri, experiment) as (client, experiment_id):
        send_ratings(client, experiment_id, launch_id, trials, fingerprint)


def send_ratings(
    client: MlflowClient, experiment_id: str, launch_id: str, trials: Sequence[Trial], fingerprint: str
) -> None:
    """Sends the ratings that trials have of the SAE and the text of this launch; sending twice changes nothing."""
    for trial in trials:
        if (ratings := trial.directory.ratings(fingerprint)) is None:
            continue
        run = find_run(client, experiment_id, {LAUNCH: launch_id, TRIAL: trial.name})
        told = json.dumps(summary_of(ratings))
        if run is not None and run.data.tags.get(RATINGS) != told:
            client.log_text(run.info.run_id, RATINGS_FILE.encode(ratings, indent=2).decode(), FILE)
            metrics = [
                Metric(f"rated/{name}", value, ratings["timestamp"], ratings["tokens"])
                for name, value in ratings["scores"].items()
            ]
            client.log_batch(run.info.run_id, metrics=metrics, tags=[RunTag(RATINGS, told)])
