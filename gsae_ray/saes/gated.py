"""The Gated SAE."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from gsae_ray.saes.base import SAE, Losses, SAEConfig, register


@register("gated")
class GatedSAE(SAE):
    """Rajamanoharan et al. 2024, section 3 (equations 3 to 8, pseudo-code of figure 17).

        π_gate = W_gate (x − b_dec) + b_gate           f_gate = 1[π_gate > 0]
        f_mag  = ReLU(W_mag (x − b_dec) + b_mag)       W_mag  = diag(exp(r_mag)) W_gate
        f̃ = f_gate ⊙ f_mag                             x̂      = W_dec f̃ + b_dec
        L = E[ ‖x − x̂(f̃)‖² + λ ‖ReLU(π_gate)‖₁ + ‖x − x̂_frozen(ReLU(π_gate))‖² ]

    `W_enc` is W_gateᵀ. x̂_frozen uses stop-gradient copies of W_dec and b_dec. The paper's prose says that the
    auxiliary loss never reaches b_dec; its pseudo-code leaves the b_dec inside x − b_dec live, and so do we.
    """

    class Hyperparameters(SAE.Hyperparameters):
        l1_coefficient: float = Field(ge=0, description="λ, the weight of the L1 penalty, for E‖x‖² = n; a grid")

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.b_gate = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(cfg.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(cfg.d_sae))

    @property
    def sparsity_coefficient(self) -> float:
        return float(self.cfg.hyperparameters["l1_coefficient"])

    def _gate_and_acts(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(π_gate, f̃): both encoders share one product, W_mag being W_gate with rescaled rows."""
        pre_BF = self._pre(x_BD)
        pi_gate_BF = pre_BF + self.b_gate
        magnitude_BF = torch.relu(pre_BF * self.r_mag.exp() + self.b_mag)
        return pi_gate_BF, magnitude_BF * (pi_gate_BF > 0)

    def encode(self, x_BD: Tensor) -> Tensor:
        return self._gate_and_acts(x_BD)[1]

    def losses(self, x_BD: Tensor, coefficient: float) -> Losses:
        pi_gate_BF, acts_BF = self._gate_and_acts(x_BD)
        reconstruction = (x_BD - self.decode(acts_BF)).square().sum() / len(x_BD)
        gate_BF = torch.relu(pi_gate_BF)
        l1 = gate_BF.sum() / len(x_BD)
        frozen_BD = gate_BF @ self.W_dec.detach() + self.b_dec.detach()
        auxiliary = (x_BD - frozen_BD).square().sum() / len(x_BD)
        return Losses(reconstruction + coefficient * l1 + auxiliary, reconstruction, l1, auxiliary, acts_BF.detach())
