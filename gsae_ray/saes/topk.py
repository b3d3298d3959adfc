"""The TopK SAE: a form of SAEs that other libraries have trained."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gsae_ray.errors import UserError
from gsae_ray.saes.base import SAE, Losses, Objective, SAEConfig
from gsae_ray.saes.registry import register


@register("topk")
class TopKSAE(SAE):
    """Gao et al. 2024, section 2.3: of a row's activations the k largest are kept. None is trained here.

    f(x) = TopK_k(ReLU(z)),  z = W_enc (x − b_dec) + b_enc,  x̂ = W_dec f + b_dec
    """

    trainable = False
    sparsity_hyperparameter = "k"
    sparsity_in_l1_units = False

    class Hyperparameters(SAE.Hyperparameters):
        k: int = Field(gt=0, description="the most features that are active at once")

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.k: int = cfg.hyperparameters["k"]
        if self.k > cfg.d_sae:
            raise UserError(f"k: {self.k:,} is more than the {cfg.d_sae:,} features")
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))

    def encode(self, x_BD: Tensor) -> Tensor:
        acts_BF = torch.relu(self._pre(x_BD, self.b_enc))
        top = acts_BF.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(acts_BF).scatter(-1, top.indices, top.values)

    def saelens_form(self) -> dict[str, Any]:
        return {"architecture": "topk", "k": self.k, "rescale_acts_by_decoder_norm": False}

    def fold_norms(self) -> None:
        """Refuses: of features times their norms others may be the k largest.

        Raises:
            UserError: always.
        """
        raise UserError("fold_norms: of a TopK SAE others would then be the k largest features, another function")

    def losses(self, x_BD: Tensor, coefficient: float, objective: Objective = "paper") -> Losses:
        raise NotImplementedError("a TopK SAE is not trained here")
