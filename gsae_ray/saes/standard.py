"""The baseline SAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gsae_ray.fields import Finite32
from gsae_ray.saes.base import SAE, Losses, Objective, SAEConfig
from gsae_ray.saes.gated_relu import GatedReLU
from gsae_ray.saes.jumprelu import JumpReLUSAE
from gsae_ray.saes.registry import register


@register("standard")
class StandardSAE(SAE):
    """The baseline of Rajamanoharan et al. 2024, section 2.

    f(x) = ReLU(W_enc (x − b_dec) + b_enc)        x̂(f) = W_dec f + b_dec
    L    = E[ ‖x − x̂‖₂² + λ ‖f‖₁ ]                decoder rows d_i of unit norm

    With the objective `norm_weighted` the penalty is λ Σ_i f_i ‖d_i‖ and norms are free.
    """

    class Hyperparameters(SAE.Hyperparameters):
        l1_coefficient: Finite32 = Field(
            ge=0, description="λ, the weight of the L1 penalty, in training.l1_units; a grid"
        )

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))

    def encode(self, x_BD: Tensor) -> Tensor:
        return torch.relu(self._pre(x_BD, self.b_enc))

    def losses(
        self, x_BD: Tensor, coefficient: float, objective: Objective = "paper", y_BD: Tensor | None = None
    ) -> Losses:
        y_BD = self._decoder_target(x_BD, y_BD)
        acts_BF = self.encode(x_BD)
        reconstruction = (y_BD - self._decode(acts_BF)).square().sum() / len(x_BD)
        l1 = self._l1(acts_BF, objective)
        return Losses(reconstruction + coefficient * l1, reconstruction, l1, x_BD.new_zeros(()), acts_BF.detach())

    has_thresholds = True

    def margins(self, x_BD: Tensor) -> Tensor:
        return self._pre(x_BD, self.b_enc) * self.W_dec.norm(dim=1)

    def raise_thresholds(self, by: float) -> None:
        self.b_enc.sub_(by / self.W_dec.norm(dim=1))

    @classmethod
    def gated_relu(cls, hyperparameters: Mapping[str, Any], objective: Objective) -> GatedReLU | None:
        return GatedReLU(gate="b_enc", magnitude="b_enc")

    def saelens_form(self) -> dict[str, Any]:
        return {"architecture": "standard"}

    def to_jumprelu(self) -> JumpReLUSAE:
        """The same function as a JumpReLU SAE, whose thresholds are 0."""
        return JumpReLUSAE.of(self, self.W_enc, self.b_enc, torch.zeros_like(self.b_enc))
