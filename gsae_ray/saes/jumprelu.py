"""The JumpReLU SAE: the form that finished gated SAEs can be written in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsae_ray.saes.base import SAE, Losses, Objective, SAEConfig
from gsae_ray.saes.registry import register


@register("jumprelu")
class JumpReLUSAE(SAE):
    """Rajamanoharan et al. 2024, appendix E; `threshold` is θ ≥ 0. `GatedSAE.to_jumprelu` makes one; none is trained.

    f(x) = 1[z > θ] ReLU(z),  z = W_enc (x − b_dec) + b_enc,  x̂ = W_dec f + b_dec
    """

    trainable = False
    sparsity_hyperparameter = None

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.threshold = nn.Parameter(torch.zeros(cfg.d_sae))

    def encode(self, x_BD: Tensor) -> Tensor:
        pre_BF = self._pre(x_BD, self.b_enc)
        return torch.relu(pre_BF) * (pre_BF > self.threshold)

    @property
    def scaled_tensors(self) -> tuple[str, ...]:
        return (*super().scaled_tensors, "threshold")

    def losses(self, x_BD: Tensor, coefficient: float, objective: Objective = "paper") -> Losses:
        raise NotImplementedError("a JumpReLU SAE is not trained here")
