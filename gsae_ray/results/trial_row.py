"""The settings of a trial as a table row of a frontier, from its run in MLflow or from its directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gsae_ray import saes  # its names are imported at first use: the registry imports torch
from gsae_ray.config.sections import OWN
from gsae_ray.results.outcomes import Outcome
from gsae_ray.tracking.tags import EVALUATION, LAUNCH, TRIAL


def row_of_trial(outcome: Outcome) -> dict[str, Any]:
    """The settings of a trial, as columns of the frontier.

    Raises:
        KeyError, ValueError: a tag or a parameter is missing, or makes no sense.
    """
    params = outcome.params
    sparsity, l1_units = _sparsity(params)
    return {
        "run_id": outcome.run_id,
        "trial": outcome.tags[TRIAL],
        "site": params["site"],
        "architecture": params["architecture"],
        "recipe": params["recipe"],
        "variant": params.get("variant", ""),
        "l1_units": l1_units,
        "d_sae": int(params["d_sae"]),
        "sparsity": sparsity,
        "lr": float(params["lr"]),
        "seed": int(params["seed"]),
        "tokens": int(params["tokens"]),
        "batch_size": int(params["batch_size"]),
        "engine": params.get("engine", "dense"),
        "precision": params.get("precision", "float32"),
        "parent": params.get("parent", ""),
        "launch": outcome.tags[LAUNCH],
        "sink_share": outcome.metrics.get("train/sink_share", float("nan")),
        "found_coefficient": outcome.metrics.get("train/found_coefficient", float("nan")),
        "snapshot": False,
        "origin": OWN,
        "trained_at": params["site"],
        "fingerprint": outcome.tags[EVALUATION],
        "schema": outcome.schema,
    }


def _sparsity(params: Mapping[str, str]) -> tuple[float, str]:
    """What sets how sparse a trial's features are, and the units of that, where it is the coefficient of a penalty.

    Raises:
        KeyError, ValueError: a parameter is missing, or makes no sense.
    """
    if (value := params.get("sparsity")) is not None:
        return float(value or "nan"), params["sparsity_units"]
    sae = saes.REGISTRY[params["architecture"]]  # a run of before: its architecture knows
    name = sae.sparsity_hyperparameter
    units = params.get("l1_units", "sum") if sae.sparsity_units == "l1" else ""
    return float(params[name]) if name else float("nan"), units
