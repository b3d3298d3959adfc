"""The JumpReLU SAE: a form of finished SAEs, and of SAEs that other libraries have trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gsae_ray.saes.base import SAE, Losses, Objective, SAEConfig
from gsae_ray.saes.registry import register


@register("jumprelu")
class JumpReLUSAE(SAE):
    """Rajamanoharan et al. 2024, appendix E; `threshold` is θ ≥ 0. `to_jumprelu` makes one; none is trained.

    f(x) = 1[z > θ] ReLU(z),  z = W_enc (x − b_dec) + b_enc,  x̂ = W_dec f + b_dec

    """

    trainable = False
    sparsity_hyperparameter = None

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.threshold = nn.Parameter(torch.zeros(cfg.d_sae))

    @classmethod
    @torch.no_grad()
    def of(cls, sae: SAE, W_enc_DF: Tensor, b_enc_F: Tensor, threshold_F: Tensor) -> JumpReLUSAE:
        """A JumpReLU SAE with this encoder, and all else of another SAE."""
        trained = {"training_architecture": sae.architecture, sae.architecture: sae.cfg.hyperparameters}
        subtracts = {} if sae.subtracts_b_dec else {"subtract_b_dec": False}
        metadata = {**sae.cfg.metadata, **trained}
        form = {"architecture": cls.architecture, "hyperparameters": subtracts, "metadata": metadata}
        jumprelu = cls(sae.cfg.model_copy(update=form)).to(sae.W_enc)
        jumprelu.W_enc.copy_(W_enc_DF)
        jumprelu.W_dec.copy_(sae.W_dec)
        jumprelu.b_dec.copy_(sae.b_dec)
        jumprelu.b_enc.copy_(b_enc_F)
        jumprelu.threshold.copy_(threshold_F)
        return jumprelu.eval()

    def encode(self, x_BD: Tensor) -> Tensor:
        pre_BF = self._pre(x_BD, self.b_enc)
        return torch.relu(pre_BF) * (pre_BF > self.threshold)

    def saelens_form(self) -> dict[str, Any]:
        return {"architecture": "jumprelu"}

    def to_jumprelu(self) -> JumpReLUSAE:
        """This SAE itself."""
        return self

    @property
    def scaled_tensors(self) -> tuple[str, ...]:
        return (*super().scaled_tensors, "threshold")

    def losses(self, x_BD: Tensor, coefficient: float, objective: Objective = "paper") -> Losses:
        raise NotImplementedError("a JumpReLU SAE is not trained here")
