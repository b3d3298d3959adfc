"""Tables of features as artifacts of trials' runs."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow.tracking import MlflowClient

from gsae_ray.feature_tables.folder import ABOUT
from gsae_ray.files import file_hash
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking import artifacts
from gsae_ray.tracking.runs import find_run, recorded
from gsae_ray.tracking.tags import FEATURES, LAUNCH, TRIAL


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
        folder, evaluation = trial.directory.features, trial.directory.evaluation(fingerprint)
        about = ABOUT.read_whole(folder / "about.json")
        if about is None or evaluation is None:
            continue
        if (about["sae"], about["heldout"]) != (evaluation["sae"], fingerprint):
            continue
        run = find_run(client, experiment_id, {LAUNCH: launch_id, TRIAL: trial.name})
        content = file_hash(folder / "about.json")
        if run is not None and run.data.tags.get(FEATURES) != content:
            client.log_artifacts(run.info.run_id, str(folder), artifacts.FEATURES)
            client.set_tag(run.info.run_id, FEATURES, content)
