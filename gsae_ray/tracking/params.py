"""The parameters of runs in MLflow. Does not import MLflow: storage is read under the same names."""

from __future__ import annotations

from typing import Any

from gsae_ray.config.site import Site
from gsae_ray.config.trial import TrialSpec
from gsae_ray.storage.references import Reference


def trial_params(trial: TrialSpec) -> dict[str, Any]:
    """Parameters of a trial's run, in one flat mapping.

    `sparsity` is the value of whichever hyperparameter sets how sparse features are, and `sparsity_units` are the
    `l1_units` of that, empty where it is no coefficient of an L1 penalty: whoever reads a run need not know its
    architecture.
    """
    from gsae_ray.saes import REGISTRY  # here: it imports torch, without which a frontier is shown

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
        "sparsity": "" if trial.sparsity is None else trial.sparsity,
        "sparsity_units": training["l1_units"] if REGISTRY[trial.architecture].sparsity_in_l1_units else "",
        **training,
        **({} if trial.parent is None else {"parent": trial.parent}),
    }


def reference_params(reference: Reference) -> dict[str, Any]:
    """Parameters of the run of a reference: no recipe, and nothing else of a training that nobody knows."""
    return {key: reference[key] for key in ("architecture", "d_in", "d_sae", "site", "trained_at")}
