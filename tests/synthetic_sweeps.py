"""Small sweeps of synthetic activations, and their settings."""

from __future__ import annotations

from typing import Any

from gsae_ray.config.sweep import Sweep
from gsae_ray.config.synthetic import SyntheticSettings

SWEEP: dict[str, Any] = {
    "name": "synthetic",
    "model": {"name": "synthetic", "d_in": 16, "features": 24, "active": 2, "hierarchy": {"roots": 2}},
    "saes": [
        {"architecture": "gated", "widths": [24], "l1_coefficient": [4]},
        {"architecture": "standard", "widths": [36], "l1_coefficient": [2]},
    ],
    "training": {"tokens": 20_000, "batch_size": 128, "lr": 3e-3},
    "evaluation": {"tokens": 2000},
}


def settings(**keys: Any) -> SyntheticSettings:
    return SyntheticSettings.model_validate({"name": "synthetic", **keys})


def sweep(**sections: Any) -> Sweep:
    """`SWEEP` with other sections; keys of those that are mappings are added to it."""
    merged = {
        name: {**SWEEP.get(name, {}), **value} if isinstance(value, dict) else value for name, value in sections.items()
    }
    return Sweep.model_validate({**SWEEP, **merged})
