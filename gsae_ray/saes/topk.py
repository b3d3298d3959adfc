"""The TopK SAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gsae_ray.errors import UserError
from gsae_ray.fields import AtMost, Count, Finite32, InMemory
from gsae_ray.saes.base import SAE, Losses, Objective, SAEConfig
from gsae_ray.saes.registry import register

DEAD_TOKENS = 10_000_000
"""Rows without an activation after which Gao et al. 2024 call a feature dead; at most a tenth of the run here."""

ENCODER_SHARE = 0.7
"""W_enc begins as so much of W_decᵀ. Random features overlap: k of them, each with all of what lies along it, make more
than x together. With less, features die that are not wanted at first (docs/benchmarks.md has shares from 0.1 to 1)."""


@register("topk")
class TopKSAE(SAE):
    """Gao et al. 2024, "Scaling and evaluating sparse autoencoders", sections 2.3 and A.2: the k largest are kept.

    f(x) = TopK_k(ReLU(z)),  z = W_enc (x − b_dec) + b_enc,  x̂ = W_dec f + b_dec
    L    = E[ ‖x − x̂‖² + α ‖e − ê‖² ]                          decoder rows d_i of unit norm

    The auxiliary term, α = 1/32, gives dead features something to learn: e = x − x̂ is taken as it is (no gradient),
    and ê = W_dec f_aux is its reconstruction by the k_aux largest activations of features that are dead, which have
    been silent for `dead_after_tokens` rows. While none is dead there is no such term.
    """

    objectives = ("unit_norm",)
    sparsity_hyperparameter = "k"
    sparsity_units = None
    training_arrays = 5

    class Hyperparameters(SAE.Hyperparameters):
        k: Annotated[int, AtMost(10**9, "an SAE's weights are in memory")] = Field(
            gt=0, description="active features of a row: so many at most (topk), or on the mean (the others); a grid"
        )
        auxiliary_coefficient: Finite32 = Field(
            1 / 32, ge=0, description="α, the weight of the auxiliary term; 0: no such term"
        )
        auxiliary_k: InMemory | None = Field(
            None, description="k_aux, dead features that reconstruct a row's error; default: half of the site's width"
        )
        dead_after_tokens: Count | None = Field(
            None, description="a feature is dead once silent for so many rows; default: a tenth of the run, at most 1e7"
        )

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.k: int = cfg.hyperparameters["k"]
        try:
            self.check_width(cfg.hyperparameters, cfg.d_in, cfg.d_sae)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.silent_rows_F: Tensor
        self.register_buffer("silent_rows_F", torch.zeros(cfg.d_sae, dtype=torch.int64), persistent=False)
        self._dead_after = DEAD_TOKENS

    @classmethod
    def check_width(cls, hyperparameters: Mapping[str, Any], d_in: int, d_sae: int) -> None:
        if (k := hyperparameters["k"]) > d_sae:
            raise ValueError(f"k: {k:,} is more than the {d_sae:,} features")

    def prepare_training(self, rms_norm: float, steps: int, batch_size: int) -> None:
        given = self.cfg.hyperparameters.get("dead_after_tokens")
        self._dead_after = min(DEAD_TOKENS, steps * batch_size // 10) if given is None else given

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, mean_D: Tensor, objective: Objective = "unit_norm") -> None:
        """As every SAE, with a smaller encoder."""
        super().initialise(generator, mean_D, objective)
        self.W_enc.mul_(ENCODER_SHARE)

    def encode(self, x_BD: Tensor) -> Tensor:
        return self._largest(torch.relu(self._pre(x_BD, self.b_enc)))

    def _all_and_kept(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """ReLU(z), and of that what is kept in training."""
        all_BF = torch.relu(self._pre(x_BD, self.b_enc))
        return all_BF, self._largest(all_BF)

    def _largest(self, acts_BF: Tensor) -> Tensor:
        """The k largest activations of each row, and 0 for the others."""
        return largest(acts_BF, self.k)

    def losses(
        self, x_BD: Tensor, coefficient: float, objective: Objective = "unit_norm", y_BD: Tensor | None = None
    ) -> Losses:
        y_BD = self._decoder_target(x_BD, y_BD)
        all_BF, acts_BF = self._all_and_kept(x_BD)
        error_BD = y_BD - self._decode(acts_BF)
        reconstruction = error_BD.square().sum() / len(x_BD)
        auxiliary = self._auxiliary(all_BF, acts_BF, error_BD)
        return Losses(
            reconstruction + auxiliary, reconstruction, x_BD.new_zeros(()), auxiliary.detach(), acts_BF.detach()
        )

    def _auxiliary(self, all_BF: Tensor, acts_BF: Tensor, error_BD: Tensor) -> Tensor:
        """α ‖e − ê‖², by the features that were dead before this batch, of which it takes note in training."""
        dead_F = self.silent_rows_F >= self._dead_after
        if self.training:
            silent_F = (acts_BF == 0).all(0)
            self.silent_rows_F = torch.where(silent_F, self.silent_rows_F + len(acts_BF), 0)
        weight: float = self.cfg.hyperparameters.get("auxiliary_coefficient", 1 / 32)
        if not weight or not dead_F.any():
            return error_BD.new_zeros(())
        k_aux = self.cfg.hyperparameters.get("auxiliary_k") or max(1, self.cfg.width_out // 2)
        dead_BK = largest(all_BF[:, dead_F], min(k_aux, int(dead_F.sum())))
        residual_BD = error_BD.detach() - dead_BK.to(self.W_dec.dtype) @ self.W_dec[dead_F]
        return weight * residual_BD.square().sum() / len(error_BD)

    @torch.no_grad()
    def replace_features(
        self, features_K: Tensor, directions_KD: Tensor, alive_F: Tensor, objective: Objective
    ) -> None:
        super().replace_features(features_K, directions_KD, alive_F, objective)
        self.silent_rows_F[features_K] = 0

    def saelens_form(self) -> dict[str, Any]:
        return {"architecture": "topk", "k": self.k, "rescale_acts_by_decoder_norm": False}

    def to_jumprelu(self) -> SAE:
        """Refuses: which are the k largest no threshold tells.

        Raises:
            UserError: always.
        """
        raise UserError(
            "to_jumprelu: a TopK SAE has no thresholds, so there is no such form; take the format saelens or sparsify"
        )

    def fold_norms(self) -> None:
        """Refuses: of features times their norms others may be the k largest.

        Raises:
            UserError: always.
        """
        raise UserError("fold_norms: of a TopK SAE others would then be the k largest features, another function")


def largest(acts_BF: Tensor, k: int) -> Tensor:
    """The k largest activations of each row [..., d_sae], and 0 for the others."""
    top = acts_BF.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(acts_BF).scatter(-1, top.indices, top.values)
