"""Tables of features of a launch's SAEs, made in this process, without Ray."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from gsae_ray.config.features import FeatureSettings
from gsae_ray.config.trial import TrialSpec
from gsae_ray.driver.display import Display
from gsae_ray.driver.feature_pages import write_feature_pages
from gsae_ray.driver.launched import find_launched, own_producer
from gsae_ray.driver.missing_features import feature_task, missing_features
from gsae_ray.errors import NumericError, UserError, shown, suggest
from gsae_ray.files import disk_space_needed
from gsae_ray.storage.features import has_features
from gsae_ray.storage.trial_directory import Trial, TrialDirectory
from gsae_ray.tracking.features import record_features
from gsae_ray.tracking.tags import TRIAL


def make_features(
    experiment: str,
    trials: Collection[str] | None = None,
    *,
    settings: FeatureSettings | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    storage: str | Path | None = None,
    console: Console | None = None,
) -> tuple[dict[str, Path], list[str]]:
    """Makes the tables of features of finished SAEs that are missing, as a launch with `evaluation.features` does.

    The language model runs in this process. What is there is not made again. Storage keeps the tables, MLflow gets them
    as artifacts of the trials' runs.

    Args:
        experiment: whose launch.
        trials: names of trials; default: those that `settings.saes` says.
        settings: what is looked at; default: what the launch's sweep file says, else the defaults.
        launch: its id; default: the newest.
        tracking_uri: of MLflow; default: MLFLOW_TRACKING_URI, or `mlflow.db` in the working directory.
        storage: that of the launch, where its held-out tokens are; default: `gsae_runs` in the working directory.
        console: where progress goes; default: standard error.

    Returns:
        trial -> the folder of its tables, of all finished trials that have some; and what a reader should know, as
        lines of text.

    Raises:
        UserError: the launch's storage is not here, its model or data are others now, it has no such trial, or no
            language model.
    """
    say = Display(console or Console(stderr=True)).phase
    found = find_launched(
        experiment, launch, storage, "experiment", "tables of features are made of the held-out text of one launch"
    )
    launch_id, fingerprint = found.id, found.fingerprint
    finished = {outcome.tags[TRIAL]: _trial(Path(outcome.run_id)) for outcome in found.outcomes.finished(launch_id)}
    for name in trials or ():
        if name not in finished:
            raise UserError(f"trial: launch {launch_id} has no finished {shown(name)}; {suggest(name, finished)}")
    sweep = found.sweep(say)
    if sweep.activations is not None or sweep.is_synthetic:
        raise UserError(
            f"experiment: launch {launch_id} has {sweep.source}; tables of features take a sweep on a language model's "
            "text"
        )
    settings = settings or sweep.evaluation.features or FeatureSettings()
    missing = missing_features([*finished.values()], settings, fingerprint, trials)
    if missing:
        prepared = found.prepared(sweep, say, tracking_uri)
        say(f"making feature tables of {len(missing)} SAEs")
        with own_producer(prepared, say) as run, disk_space_needed(found.root):
            try:
                run(feature_task(missing, settings, prepared.sweep.language_model, fingerprint))
            except NumericError as error:
                raise UserError(f"experiment: tables of features cannot be made: {error}") from error
    notes = write_feature_pages([*finished.values()])
    try:
        record_features(tracking_uri, experiment, launch_id, [*finished.values()], fingerprint)
    except UserError as error:
        notes.append(f"MLflow does not have these tables ({error}); the same command again sends them")
    directories = {name: trial.directory for name, trial in finished.items()}
    return {name: d.features for name, d in directories.items() if has_features(d, fingerprint)}, notes


def _trial(path: Path) -> Trial:
    return Trial(TrialSpec.from_json(json.loads((path / "trial.json").read_bytes())), TrialDirectory(path))
