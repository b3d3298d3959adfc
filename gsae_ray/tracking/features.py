"""Tables of features as artifacts of trials' runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlflow.tracking import MlflowClient

from gsae_ray.feature_tables.folder import ABOUT, NAME, PAGE, is_of
from gsae_ray.files import digest, file_hash
from gsae_ray.storage.features import has_features
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking import artifacts
from gsae_ray.tracking.connection import asking, open_tracking
from gsae_ray.tracking.runs import REQUESTS, find_run, recorded
from gsae_ray.tracking.tags import CONTENT, EVALUATION, FEATURES, LAUNCH, TRIAL


def record_features(
    tracking_uri: str | None, experiment: str, launch_id: str, trials: Sequence[Trial], fingerprint: str
) -> None:
    """Brings MLflow up to date with the tables of features of a launch that it has recorded.

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
        send_features(client, experiment_id, launch_id, trials, fingerprint)


def send_features(
    client: MlflowClient, experiment_id: str, launch_id: str, trials: Sequence[Trial], fingerprint: str
) -> None:
    """Sends the tables that trials have of the SAE and the text of this launch; sending twice changes nothing."""
    for trial in trials:
        folder = trial.directory.features
        if not has_features(trial.directory, fingerprint):
            continue
        run = find_run(client, experiment_id, {LAUNCH: launch_id, TRIAL: trial.name})
        content = _content(folder)
        if run is not None and run.data.tags.get(FEATURES) != content:
            client.log_artifacts(run.info.run_id, str(folder), artifacts.FEATURES)
            client.set_tag(run.info.run_id, FEATURES, content)


def _content(folder: Path) -> str:
    """Hash of what describes the tables, and of the page, which may have been written later or anew."""
    return digest([file_hash(path) for path in (folder / NAME, folder / PAGE) if path.exists()])


def runs_with_features(run_ids: Sequence[str], tracking_uri: str | None) -> set[str]:
    """The runs among these that have tables of their SAE's features, on their text, of this version.

    Raises:
        UserError: MLflow does not answer.
    """
    client = open_tracking(tracking_uri)
    with asking(client.tracking_uri), ThreadPoolExecutor(REQUESTS) as pool:
        found = pool.map(lambda run_id: _has_tables(client, run_id), run_ids)
        return {run_id for run_id, has in zip(run_ids, found, strict=True) if has}


def _has_tables(client: MlflowClient, run_id: str) -> bool:
    names = {Path(item.path).name for item in client.list_artifacts(run_id, artifacts.FEATURES)}
    if NAME not in names:
        return False
    tags = client.get_run(run_id).data.tags
    with tempfile.TemporaryDirectory(prefix="gsae-") as folder:
        path = client.download_artifacts(run_id, f"{artifacts.FEATURES}/{NAME}", folder)
        about = ABOUT.read_whole(Path(path))
    return is_of(about, names, tags.get(CONTENT, ""), tags.get(EVALUATION, ""))
