"""References of a launch in MLflow: a run each, nested under the launch's, of a kind of its own."""

from __future__ import annotations

import math
from http import HTTPStatus
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from gsae_ray.errors import UserError, first_line, shown
from gsae_ray.storage.evaluations import EVALUATION as EVALUATION_FILE
from gsae_ray.storage.evaluations import EvaluationRecord, schema_of
from gsae_ray.storage.references import Reference, evaluation_of, reference_id, references_of
from gsae_ray.tracking.artifacts import sequences_path
from gsae_ray.tracking.connection import asking, open_tracking
from gsae_ray.tracking.credentials import redacted
from gsae_ray.tracking.experiment import check_artifacts
from gsae_ray.tracking.params import reference_params
from gsae_ray.tracking.runs import find_run
from gsae_ray.tracking.tags import CONTENT, EVALUATION, IDENTITY, KIND, LAUNCH, ORIGIN, SCHEMA, SOURCE


def record_references(tracking_uri: str | None, experiment: str, launch: Path, fingerprint: str) -> list[str]:
    """Brings MLflow up to date with the references of a launch that it has recorded.

    Args:
        tracking_uri: of MLflow.
        experiment: that of the launch.
        launch: the launch's folder in storage.
        fingerprint: of its held-out contexts.

    Returns:
        as `send_references`.

    Raises:
        UserError: MLflow has no such launch, or does not answer.
    """
    client = open_tracking(tracking_uri)
    with asking(client.tracking_uri):
        found = client.get_experiment_by_name(experiment)
        tags = {LAUNCH: launch.name, KIND: "launch"}
        parent = None if found is None else find_run(client, found.experiment_id, tags)
        if found is None or parent is None:
            raise UserError(f"--tracking-uri: {redacted(client.tracking_uri)} has no run of launch {launch.name}")
        return send_references(client, found.experiment_id, parent.info.run_id, launch, fingerprint)


def send_references(
    client: MlflowClient, experiment_id: str, parent_id: str, launch: Path, fingerprint: str
) -> list[str]:
    """Sends the references of a launch that are evaluated; sending twice changes nothing.

    Args:
        client: of MLflow.
        experiment_id: that of the launch.
        parent_id: the launch's run.
        launch: the launch's folder in storage.
        fingerprint: of its held-out contexts.

    Returns:
        a line about each that MLflow does not take (its texts may be too long): the others and the launch have theirs.
    """
    references, _ = references_of(launch)
    refused = []
    for reference in references:
        evaluation = evaluation_of(launch.parents[2], reference, fingerprint)
        if evaluation is not None:
            tags = {LAUNCH: launch.name, KIND: "reference", IDENTITY: reference_id(reference), EVALUATION: fingerprint}
            try:
                _send(client, experiment_id, {**tags, "mlflow.parentRunId": parent_id}, reference, evaluation)
            except MlflowException as error:
                if error.get_http_status_code() != HTTPStatus.BAD_REQUEST:
                    raise
                refused.append(f"{shown(reference['origin'])} is not in MLflow: {first_line(error)}")
    return refused


def _send(
    client: MlflowClient,
    experiment_id: str,
    tags: dict[str, str],
    reference: Reference,
    evaluation: EvaluationRecord,
) -> None:
    run = find_run(client, experiment_id, {key: tags[key] for key in (LAUNCH, KIND, IDENTITY)})
    if run is None:
        run = client.create_run(experiment_id, tags=tags, run_name=reference["origin"])
    run_id, schema = run.info.run_id, str(schema_of(evaluation))
    told = {ORIGIN: reference["origin"], SOURCE: reference["source"], CONTENT: reference["sae"], SCHEMA: schema}
    is_whole = run.info.status == "FINISHED" and run.data.tags.get(SCHEMA) == schema
    if not is_whole:
        check_artifacts(client.tracking_uri, run.info.artifact_uri)
        params = {key: str(value) for key, value in reference_params(reference).items() if key not in run.data.params}
        metrics = [
            Metric(name, value, evaluation["timestamp"], evaluation["step"])
            for name, value in evaluation["metrics"].items()
            if math.isfinite(value)
        ]
        client.log_batch(run_id, metrics=metrics, params=[Param(*item) for item in params.items()])
        client.log_text(run_id, EVALUATION_FILE.encode(evaluation).decode(), sequences_path(None))
    if any(run.data.tags.get(key) != value for key, value in told.items()):  # it may have another name now
        client.log_batch(run_id, tags=[RunTag(*item) for item in told.items()])
    client.set_terminated(run_id, "FINISHED")
