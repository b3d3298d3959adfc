"""The parameters of runs in MLflow. Does not import MLflow: storage is read under the same names."""

from __future__ import annotations

from typing import Any

from gsae_ray.config.site import Site
from gsae_ray.config.trial import TrialSpec
from gsae_ray.storage.references import Reference


def trial_params(trial: TrialSpec) -> dict[str, Any]:
    """Parameters of a trial's run, in one flat mapping.

    `sparsity` is the value of whichever hyperparameter sets how sparse features are, and `sparsity_units` are the
    `l1_units` of that, `square_norm` where it is a share of E‖x‖², empty where it is no coefficient of a penalty:
    whoever reads a run need not know its architecture.
    """
    site = Site(trial.site)
    training = trial.to_json()["training"]
    if not trial.training.snapshots_at:
        training.pop("snapshots_at")
    return {
        "architecture": trial.architecture,
        "recipe": trial.recipe,
        "variant": trial.variant,
        "d_in": trial.d_in,
        "d_sae": trial.d_sae,
        "site": trial.site,
        **({} if trial.d_out is None else {"d_out": trial.d_out, "target": site.target.name, "skip": trial.skip}),
        "layer": "" if site.layer is None else site.layer,
        "point": site.point,
        **{key: value for key, value in trial.hyperparameters.items() if value is not None},
        "sparsity": "" if trial.sparsity is None else trial.sparsity,
        "sparsity_units": _units(trial),
        **training,
        **({} if trial.parent is None else {"parent": trial.parent}),
    }


def _units(trial: TrialSpec) -> str:
    """Units of what `sparsity` is."""
    from gsae_ray.saes import REGISTRY  # here: it imports torch, without which a frontier is shown

    sae = REGISTRY[trial.architecture]
    if trial.sparsity_key != sae.sparsity_hyperparameter:
        return ""
    return trial.training.l1_units if sae.sparsity_units == "l1" else sae.sparsity_units or ""


def reference_params(reference: Reference) -> dict[str, Any]:
    """Parameters of the run of a reference: no recipe, and nothing else of a training that nobody knows."""
    return {key: reference[key] for key in ("architecture", "d_in", "d_sae", "site", "trained_at")}
