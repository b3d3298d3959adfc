"""SAEs that were not trained here, with known weights, in a format of another library."""

from __future__ import annotations

from pathlib import Path

import torch

from gsae_ray.saes import SAEConfig, build
from gsae_ray.saes.export import export


def near_identity(folder: Path, d_in: int, threshold: float, site: str = "") -> Path:
    """A folder of SAELens with a JumpReLU SAE whose features are ± each coordinate, where that exceeds the threshold.

    Its reconstruction is the activation without its small coordinates.
    """
    sae = build(SAEConfig(architecture="jumprelu", d_in=d_in, d_sae=2 * d_in, site=site))
    both = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    weights = {"W_enc": both.T, "W_dec": both, "threshold": torch.full((2 * d_in,), threshold)}
    sae.load_state_dict({**sae.state_dict(), **weights})
    export(sae, folder, "saelens")
    return folder
