"""SAEs of known size: at the start of training, or with every parameter random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gsae_ray.saes import SAE, SAEConfig, build

architectures = pytest.mark.parametrize("architecture", ["standard", "gated"])


def config(architecture: str, d_in: int = 6, d_sae: int = 10, **fields: Any) -> SAEConfig:
    fields = {"hyperparameters": {"l1_coefficient": 2.5}, "site": "blocks.1.hook_mlp_out", **fields}
    return SAEConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, **fields)


def initialised(architecture: str, seed: int = 0, mean_D: Tensor | None = None) -> SAE:
    sae = build(config(architecture))
    sae.initialise(torch.Generator().manual_seed(seed), torch.zeros(6) if mean_D is None else mean_D)
    return sae


def trained(architecture: str) -> SAE:
    """Every parameter random, the decoder's rows of unit norm."""
    sae = build(config(architecture, metadata={"model": "builtin", "λ": [1, 0.1, None]}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    sae.normalise_decoder()
    return sae
