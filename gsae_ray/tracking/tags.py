"""The names of our tags in MLflow, and the parameters of a trial's run. Does not import MLflow."""

from __future__ import annotations

from typing import Any

from gsae_ray.config.site import Site
from gsae_ray.config.trial import TrialSpec

SWEEP = "gsae.sweep"
"""The tag of an experiment and of a launch's run: the sweep's name."""
KIND = "gsae.kind"
"""Of each run: "launch" or "trial"."""
LAUNCH, TRIAL, IDENTITY = "gsae.launch", "gsae.trial", "gsae.identity"
"""The launch's id; and of a trial's run its name and identity (`TrialSpec.identity`)."""
EVALUATION, FAILURE = "gsae.evaluation", "gsae.failure"
"""The fingerprint of the held-out contexts; and of a failed trial's run why it failed."""
SCHEMA = "gsae.schema"
"""Of a finished trial's run: the schema version of its evaluations (`evaluation.metrics`); 1 where it is missing."""
CONTENT = "gsae.sae"
"""Of a finished trial's run: the hash of its SAE (`saes.files.content_hash`), by which a damaged artifact is found."""
JOB, PROGRESS = "gsae.job", "gsae.progress"
"""Tags of a launch's run: the job that it is run by, and how far it is (JSON)."""

JOB_VARIABLE = "GSAE_JOB"
"""Tells a driver which job of a cluster it is."""


def trial_params(trial: TrialSpec) -> dict[str, Any]:
    """Parameters of a trial's run, in one flat mapping."""
    site = Site(trial.site)
    training = trial.to_json()["training"]
    return {
        "architecture": trial.architecture,
        "recipe": trial.recipe,
        "variant": trial.variant,
        "d_in": trial.d_in,
        "d_sae": trial.d_sae,
        "site": trial.site,
        "layer": "" if site.layer is None else site.layer,
        "point": site.point,
        **{key: value for key, value in trial.hyperparameters.items() if value is not None},
        **training,
        **({} if trial.parent is None else {"parent": trial.parent}),
    }
