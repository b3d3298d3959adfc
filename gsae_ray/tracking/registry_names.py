"""Names of registered models, of their aliases, and of what chooses them. Does not import MLflow."""

from __future__ import annotations

import hashlib

from gsae_ray.names import folder_name

ALIASES = {f"best-l0-{most}": most for most in (8, 16, 32, 64, 128, 256)}
"""Alias -> the L0 that its SAE has at most."""
L0, RECOVERED, EXPLAINED = "l0", "loss_recovered", "explained_variance"
"""Tags of a version by which the best one is found."""
MAX_NAME = 250
"""Characters of a name; MLflow's databases take 256."""
_KEPT = MAX_NAME - 34
_BETWEEN = "~"
"""Never in either part, so that different experiments have different names."""


def model_name(experiment: str, site: str) -> str:
    """The registered model of a site: `EXPERIMENT~SITE`, both written as `folder_name` does.

    So letters, digits, `_`, `-` and inner dots stay, and all else (of which MLflow refuses `/` and `:`) is `=` and its
    code; long names end in a hash.
    """
    name = f"{folder_name(experiment)}{_BETWEEN}{folder_name(site)}"
    return name if len(name) <= MAX_NAME else f"{name[:_KEPT]}=={hashlib.sha256(name.encode()).hexdigest()[:32]}"


def names_start(experiment: str) -> str:
    """How the names of all registered models of an experiment begin; those of others may begin so, too."""
    return f"{folder_name(experiment)}{_BETWEEN}"[:_KEPT]
