"""The JumpReLU SAE, which is also a form of other finished SAEs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gsae_ray.fields import Finite32
from gsae_ray.saes.architecture import TARGET_L0
from gsae_ray.saes.base import SAE, Losses, Objective, SAEConfig
from gsae_ray.saes.registry import register

FIRING = 3.0
"""First thresholds are at most so many standard deviations of the activations before them: 0.1 % fire."""
THRESHOLD = BANDWIDTH = 0.01
"""The paper has 0.001 with a lr of 7e-5. At larger ones, where Adam moves θ by as much in a step, this is better."""


@register("jumprelu")
class JumpReLUSAE(SAE):
    """Rajamanoharan et al. 2024b, "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse autoencoders".

    f(x) = 1[z > θ] z,  z = ReLU(W_enc (x − b_dec) + b_enc),  x̂ = W_dec f + b_dec,  θ ≥ 0 a number for each feature
    L    = E[ ‖x − x̂‖² ] + λ E[‖f‖₀]                      penalty: l0         (equation 9)
    L    = E[ ‖x − x̂‖² ] + λ (E[‖f‖₀] / L0* − 1)²         penalty: quadratic  (section 6; E over the batch)

    Decoder rows d_i have unit norm. The jumps have no gradient, so that of θ is estimated with the kernel
    K(u) = 1[|u| < 1/2] (equations 11 and 12), where ε is the bandwidth and H(z − θ) what ‖f‖₀ counts:

    ∂f/∂θ := −(θ/ε) K((z − θ)/ε)                           ∂H(z − θ)/∂θ := −(1/ε) K((z − θ)/ε)

    (z is 0 on rows where a feature is off, which the penalty counts within the kernel where θ < ε/2: thresholds settle
    above that.)

    ε and the first θ are in units of √E‖x‖², and λ is a share of E‖x‖², that which a feature has to explain where it
    is on: all three mean the same on any scale of activations. (The paper's are of E‖x‖² = 1.) θ itself is learnt, and
    kept ≥ 0, where the paper learns log θ: that hardly moves in short runs, since Adam's steps have the size of lr.
    `to_jumprelu` makes such an SAE of others, which have no λ.
    """

    objectives = ("unit_norm",)
    sparsity_hyperparameter = "l0_coefficient"
    sparsity_units = "square_norm"
    training_arrays = 7

    class Hyperparameters(SAE.Hyperparameters):
        l0_coefficient: Finite32 = Field(
            ge=0, description="λ, the weight of the L0 penalty, as a share of E‖x‖² (the paper's, at E‖x‖² = 1); a grid"
        )
        penalty: Literal["l0", "quadratic"] = Field(
            "l0", description="l0: λ L0; quadratic: λ (L0 / quadratic_l0 − 1)², which L0 settles near quadratic_l0 by"
        )
        quadratic_l0: Finite32 | None = Field(None, gt=0, description="the L0 that penalty: quadratic asks for; a grid")
        bandwidth: Finite32 = Field(
            BANDWIDTH, gt=0, lt=1, description="ε of the kernel that estimates the gradient of θ, in units of √E‖x‖²"
        )
        initial_threshold: Finite32 = Field(
            THRESHOLD,
            gt=0,
            lt=1,
            description="θ at the start, in units of √E‖x‖²; from 1 on nothing would ever fire",
        )

        @model_validator(mode="after")
        def _consistent(self) -> JumpReLUSAE.Hyperparameters:
            if (self.penalty == "quadratic") != (self.quadratic_l0 is not None):
                raise ValueError("penalty: quadratic and quadratic_l0, the L0 that it asks for, go together")
            return self

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.threshold = nn.Parameter(torch.zeros(cfg.d_sae))
        self._rms_norm = 1.0

    @classmethod
    @torch.no_grad()
    def of(cls, sae: SAE, W_enc_DF: Tensor, b_enc_F: Tensor, threshold_F: Tensor) -> JumpReLUSAE:
        """A JumpReLU SAE with this encoder, and all else of another SAE."""
        trained = {"training_architecture": sae.architecture, sae.architecture: sae.cfg.hyperparameters}
        subtracts = {} if sae.subtracts_b_dec or sae.cfg.is_transcoder else {"subtract_b_dec": False}
        metadata = {**sae.cfg.metadata, **trained}
        form = {"architecture": cls.architecture, "hyperparameters": subtracts, "metadata": metadata}
        jumprelu = cls(sae.cfg.model_copy(update=form)).to(sae.W_enc)
        jumprelu.W_enc.copy_(W_enc_DF)
        jumprelu.W_dec.copy_(sae.W_dec)
        jumprelu.b_dec.copy_(sae.b_dec)
        jumprelu.b_enc.copy_(b_enc_F)
        jumprelu.threshold.copy_(threshold_F)
        if sae.cfg.skip:
            jumprelu.W_skip.copy_(sae.W_skip)
        return jumprelu.eval()

    @classmethod
    def check_hyperparameters(cls, hyperparameters: dict[str, Any], trained_here: bool = True) -> None:
        super().check_hyperparameters({"l0_coefficient": 0.0, **hyperparameters}, trained_here)  # `of` has none

    @classmethod
    def check_width(cls, hyperparameters: Mapping[str, Any], d_in: int, d_sae: int) -> None:
        threshold, highest = hyperparameters["initial_threshold"], FIRING / math.sqrt(d_in)
        if threshold > highest:
            raise ValueError(
                f"initial_threshold: {threshold:g} is above {highest:.3g}, {FIRING:g} standard deviations of z at the "
                f"start on activations of width {d_in}: no feature would fire, and none would learn"
            )
        target = hyperparameters.get("quadratic_l0")
        if target is not None and target > d_sae:
            raise ValueError(f"quadratic_l0: {target:g} is more than the {d_sae:,} features")

    @property
    def trained_here(self) -> bool:
        known = {"l0_coefficient", TARGET_L0} & self.cfg.hyperparameters.keys()
        return super().trained_here and bool(known)  # else it is a form of another

    @property
    def threshold_tensors(self) -> tuple[str, ...]:
        return ("threshold",)

    @classmethod
    def sparsity_key(cls, hyperparameters: Mapping[str, Any]) -> str:
        return "quadratic_l0" if hyperparameters.get("penalty") == "quadratic" else "l0_coefficient"

    def prepare_training(self, rms_norm: float, steps: int, batch_size: int) -> None:
        self._rms_norm = rms_norm

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, mean_D: Tensor, objective: Objective = "unit_norm") -> None:
        super().initialise(generator, mean_D, objective)
        self.threshold.fill_(self._of("initial_threshold", THRESHOLD) * self._rms_norm)

    def _of(self, name: str, default: float) -> float:
        value: float = self.cfg.hyperparameters.get(name, default)
        return value

    def encode(self, x_BD: Tensor) -> Tensor:
        pre_BF = self._pre(x_BD, self.b_enc)
        return torch.relu(pre_BF) * (pre_BF > self.threshold)

    def losses(
        self, x_BD: Tensor, coefficient: float, objective: Objective = "unit_norm", y_BD: Tensor | None = None
    ) -> Losses:
        y_BD = self._decoder_target(x_BD, y_BD)
        bandwidth = self._of("bandwidth", BANDWIDTH) * self._rms_norm
        z_BF = torch.relu(self._pre(x_BD, self.b_enc))
        with torch.no_grad():
            on_BF = (z_BF > self.threshold).to(z_BF.dtype)
            kernel_BF = ((z_BF - self.threshold).abs() < bandwidth / 2).to(z_BF.dtype) / bandwidth
        zero_F = self.threshold - self.threshold.detach()  # with the gradient of θ
        acts_BF = z_BF * on_BF - (self.threshold.detach() * kernel_BF) * zero_F
        l0 = (on_BF.sum() - (kernel_BF.sum(0) * zero_F).sum()) / len(x_BD)
        reconstruction = (y_BD - self._decode(acts_BF)).square().sum() / len(x_BD)
        target = self.cfg.hyperparameters.get("quadratic_l0")
        penalty = l0 if target is None else (l0 / target - 1).square()
        loss = reconstruction + coefficient * penalty
        return Losses(loss, reconstruction, penalty, x_BD.new_zeros(()), acts_BF.detach())

    @torch.no_grad()
    def constrain(self) -> None:
        self.threshold.clamp_min_(0)

    @torch.no_grad()
    def replace_features(
        self, features_K: Tensor, directions_KD: Tensor, alive_F: Tensor, objective: Objective
    ) -> None:
        super().replace_features(features_K, directions_KD, alive_F, objective)
        self.threshold[features_K] = self._of("initial_threshold", THRESHOLD) * self._rms_norm

    has_thresholds = True

    def margins(self, x_BD: Tensor) -> Tensor:
        pre_BF = self._pre(x_BD, self.b_enc)
        return torch.where(pre_BF > 0, (pre_BF - self.threshold) * self.W_dec.norm(dim=1), -torch.inf)

    def raise_thresholds(self, by: float) -> None:
        self.threshold.add_(by / self.W_dec.norm(dim=1))
        self.constrain()

    def saelens_form(self) -> dict[str, Any]:
        return {"architecture": "jumprelu"}

    def to_jumprelu(self) -> JumpReLUSAE:
        """This SAE itself."""
        return self

    @property
    def scaled_tensors(self) -> tuple[str, ...]:
        return (*super().scaled_tensors, "threshold")
