"""Artifacts of runs: trials' SAEs and evaluations, fetched and compared with what was saved."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from gsae_ray.errors import UserError, first_line
from gsae_ray.saes.folder import holds
from gsae_ray.storage.evaluations import EVALUATION as EVALUATION_FILE
from gsae_ray.storage.evaluations import Snapshot, Subject, suffix_of
from gsae_ray.tracking.connection import open_tracking, quick_failure
from gsae_ray.tracking.credentials import redacted_in
from gsae_ray.tracking.tags import CONTENT, SNAPSHOT, SOURCE

FEATURES = "features"
"""The folder of artifacts of a run, and in a trial's directory, that holds the tables of its SAE's features."""
TRANSFER_S = 120
"""Seconds without a byte of a file after which a server counts as away. It may have to fetch the file first."""
_RECORD_ANEW = "run its sweep without --resume, which records anew what is trained"


def sequences_path(subject: Subject) -> str:
    """The artifact of a trial's run that holds an evaluation, with its sums of each held-out context."""
    return f"evaluation/sequences{suffix_of(subject)}.json"


def snapshot_path(tokens: int) -> str:
    """The folder of artifacts of a trial's run that holds a snapshot's SAE."""
    return f"snapshots/{tokens}"


def download_sequences(client: MlflowClient, run_id: str, subject: Subject) -> dict[str, list[float]]:
    """Downloads what a trial's evaluation summed over each held-out context, unchecked.

    Raises:
        ValueError: the artifact is damaged.
    """
    uri = f"runs:/{run_id}/{sequences_path(subject)}"
    with tempfile.TemporaryDirectory(prefix="gsae-") as folder:
        path = mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=client.tracking_uri)
        return EVALUATION_FILE.decode(Path(path).read_bytes())["sequences"]


def download_sae(client: MlflowClient, run_id: str, directory: str | Path, snapshot: int | None = None) -> Path:
    """Downloads a trial's SAE, or the snapshot after so many tokens, to a folder in `directory`, unchecked."""
    uri, path = client.tracking_uri, "sae" if snapshot is None else snapshot_path(snapshot)
    found = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path=path, dst_path=str(directory), tracking_uri=uri
    )
    return Path(found)


def fetch_sequences(run_id: str, tracking_uri: str | None, subject: Subject) -> dict[str, list[float]]:
    """Downloads what an evaluation of a trial summed over each held-out context.

    Raises:
        UserError: that run has none, or they are not as they were saved.
    """
    client = open_tracking(tracking_uri)
    try:
        with quick_failure(TRANSFER_S):
            found = download_sequences(client, run_id, subject)
    except (MlflowException, OSError) as error:
        what = ""
        if isinstance(subject, Snapshot):
            what = f" of its snapshot at {subject.tokens} tokens"
        elif subject is not None:
            what = f" by pursuit at L0 {subject}"
        raise UserError(
            f"sequences: run {run_id} has no sums of each context{what} that can be fetched: "
            f"{redacted_in(first_line(error), client.tracking_uri)}"
        ) from error
    except ValueError as error:
        raise UserError(
            f"sequences: those of run {run_id} are damaged: what MLflow has is not what was saved; {_RECORD_ANEW}"
        ) from error
    return found


def fetch_features(run_id: str, directory: str | Path, tracking_uri: str | None) -> Path:
    """Downloads the tables of features of a run that has them, to a folder in `directory`, unchecked.

    Raises:
        UserError: they cannot be had.
    """
    client = open_tracking(tracking_uri)
    where = {"run_id": run_id, "artifact_path": FEATURES, "dst_path": str(directory)}
    try:
        with quick_failure(TRANSFER_S):
            return Path(mlflow.artifacts.download_artifacts(**where, tracking_uri=client.tracking_uri))
    except (MlflowException, OSError) as error:
        said = redacted_in(first_line(error), client.tracking_uri)
        raise UserError(f"features: the tables of run {run_id} cannot be fetched: {said}") from error


def fetch_sae(
    run_id: str, directory: str | Path, tracking_uri: str | None, key: str, snapshot: int | None = None
) -> Path:
    """Downloads the SAE of a run, or its snapshot after so many tokens, to a folder in `directory`.

    Raises:
        UserError: it cannot be had, or is not as it was saved; the line begins with `key`.
    """
    client = open_tracking(tracking_uri)
    try:
        with quick_failure(TRANSFER_S):
            tags = client.get_run(run_id).data.tags
            if SOURCE in tags:
                raise UserError(f"{key}: run {run_id} is that of a reference, whose SAE was read from {tags[SOURCE]}")
            folder = download_sae(client, run_id, directory, snapshot)
    except (MlflowException, OSError) as error:
        said = redacted_in(first_line(error), client.tracking_uri)
        raise UserError(f"{key}: the SAE of run {run_id} cannot be fetched: {said}") from error
    if not holds(folder, tags.get(CONTENT if snapshot is None else f"{SNAPSHOT}{snapshot}")):
        raise UserError(
            f"{key}: the SAE of run {run_id} is damaged: what MLflow has is not what was saved; {_RECORD_ANEW}"
        )
    return folder
