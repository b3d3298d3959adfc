"""Random finished transcoders of every architecture, and rows for them."""

from __future__ import annotations

from typing import Any

import torch

from gsae_ray.saes import SAE, SAEConfig, build

N, M, ROWS = 6, 20, 50
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 1.0},
    "gated": {"l1_coefficient": 1.0},
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "matryoshka_batchtopk": {"k": 4, "prefix_widths": [5, M]},
    "jumprelu": {"l0_coefficient": 0.01},
    "p_anneal": {"l1_coefficient": 1.0},
}
SITE, TARGET = "blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out"


def transcoder(architecture: str, skip: bool = False, d_out: int = N, layer: int = 2, seed: int = 0) -> SAE:
    places = {"site": f"blocks.{layer}.mlp.hook_in", "target": f"blocks.{layer}.hook_mlp_out"}
    cfg = SAEConfig(
        architecture=architecture,
        d_in=N,
        d_sae=M,
        d_out=d_out,
        skip=skip,
        hyperparameters=HYPERPARAMETERS[architecture],
        metadata={"model": {"name": "gpt2", "context_size": 32}},
        **places,
    )
    sae = build(cfg)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
            if name == "threshold":
                tensor.abs_()
    return sae.eval()


def rows(seed: int = 1) -> torch.Tensor:
    return torch.randn(ROWS, N, generator=torch.Generator().manual_seed(seed))
