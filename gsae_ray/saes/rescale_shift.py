"""Rescale & shift: a finished standard SAE whose shrinkage is mended, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from gsae_ray.fields import Finite32
from gsae_ray.names import check_run_id
from gsae_ray.saes.architecture import TARGET_L0
from gsae_ray.saes.base import SAE, Losses, Objective, SAEConfig
from gsae_ray.saes.gated import GatedSAE
from gsae_ray.saes.gated_relu import GatedReLU
from gsae_ray.saes.registry import register


@register("rescale_shift")
class RescaleShiftSAE(GatedSAE):
    """Rajamanoharan et al. 2024, section 5.2 (figure 9): what of the gated SAE's gain is only the end of shrinkage?

    The form of a gated SAE; W_gate = W_enc, b_gate = b_enc, W_dec and b_dec are those of a finished standard SAE (the
    parent), frozen. Only r_mag and b_mag are learnt, from 0 and b_enc (the parent itself), on L = E[ ‖x − x̂(f̃)‖² ].
    """

    parent_architecture = "standard"

    class Hyperparameters(SAE.Hyperparameters):
        l1_coefficient: Finite32 | None = Field(
            None, ge=0, description="λ of the parent, a standard SAE of this sweep with the same site, width and seed"
        )
        parent: Annotated[str, AfterValidator(check_run_id)] | None = Field(
            None, description="instead: the MLflow run of a finished standard SAE"
        )

        @model_validator(mode="after")
        def _consistent(self) -> RescaleShiftSAE.Hyperparameters:
            if (self.l1_coefficient is None) == (self.parent is None):
                raise ValueError(
                    "l1_coefficient or target_l0 of a parent in this sweep, or parent: a run's id; give one of them"
                )
            return self

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        for parameter in (self.W_enc, self.W_dec, self.b_dec, self.b_gate):
            parameter.requires_grad_(False)

    @classmethod
    def check_hyperparameters(cls, hyperparameters: dict[str, Any], trained_here: bool = True) -> None:
        left_out = (
            {"l1_coefficient", TARGET_L0} if hyperparameters.get("parent") is not None else set()
        )  # known by the parent
        super().check_hyperparameters({k: v for k, v in hyperparameters.items() if k not in left_out}, trained_here)

    @property
    def sparsity_coefficient(self) -> float:
        return 0.0  # the penalty did its work in the parent

    @classmethod
    def training_products(cls, hyperparameters: Mapping[str, Any], objective: Objective) -> int:
        return 3  # encode, decode, the gradient of f̃

    @torch.no_grad()
    def adopt(self, parent: SAE, start: bool) -> None:
        """Copies the frozen parameters from the parent; at the `start` also its b_enc to b_mag, and r_mag is 0."""
        parent = parent.subtracting_b_dec(True)
        self.W_enc.copy_(parent.W_enc)
        self.W_dec.copy_(parent.W_dec)
        self.b_dec.copy_(parent.b_dec)
        self.b_gate.copy_(parent.get_parameter("b_enc"))
        if start:
            self.b_mag.copy_(self.b_gate)
            self.r_mag.zero_()

    def losses(
        self, x_BD: Tensor, coefficient: float, objective: Objective = "paper", y_BD: Tensor | None = None
    ) -> Losses:
        y_BD = self._decoder_target(x_BD, y_BD)
        acts_BF = self.encode(x_BD)
        reconstruction = (y_BD - self._decode(acts_BF)).square().sum() / len(x_BD)
        zero = x_BD.new_zeros(())
        return Losses(reconstruction, reconstruction, zero, zero, acts_BF.detach())

    @classmethod
    def gated_relu(cls, hyperparameters: Mapping[str, Any], objective: Objective) -> GatedReLU:
        return GatedReLU("b_gate", "b_mag", log_scale="r_mag", penalised=False)
