"""The Gated SAE, with the paper's ablations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gsae_ray.errors import UserError
from gsae_ray.fields import Finite32
from gsae_ray.saes.base import SAE, Losses, Objective, SAEConfig
from gsae_ray.saes.gated_relu import GatedReLU
from gsae_ray.saes.jumprelu import JumpReLUSAE
from gsae_ray.saes.registry import register

Auxiliary = Literal["frozen", "unfrozen", "none"]
DEFAULT_AUXILIARY: dict[Objective, Auxiliary] = {"paper": "frozen", "norm_weighted": "unfrozen"}


@register("gated")
class GatedSAE(SAE):
    """Rajamanoharan et al. 2024, section 3 (equations 3 to 8, pseudo-code of figure 17).

        π_gate = W_gate (x − b_dec) + b_gate           f_gate = 1[π_gate > 0]
        f_mag  = ReLU(W_mag (x − b_dec) + b_mag)       W_mag  = diag(exp(r_mag)) W_gate
        f̃ = f_gate ⊙ f_mag                             x̂      = W_dec f̃ + b_dec
        L = E[ ‖x − x̂(f̃)‖² + λ ‖ReLU(π_gate)‖₁ + ‖x − x̂_frozen(ReLU(π_gate))‖² ]

    `W_enc` is W_gateᵀ. x̂_frozen uses stop-gradient copies of W_dec and b_dec. The paper's prose says that the
    auxiliary loss never reaches b_dec; its pseudo-code leaves the b_dec inside x − b_dec live, and so do we. Of a
    transcoder with a skip connection that is frozen where W_dec is.

    With the objective `norm_weighted` the penalty is λ Σ_i ReLU(π_gate)_i ‖d_i‖, norms are free, and the auxiliary
    decoder is live: where it is frozen nothing but the penalty reaches the norms through the gate, they shrink, and
    the gate opens (measured: L0 63 instead of 10 at λ = 4, γ 0.88).

    The ablations of figure 8 are `tied`, `learn_r_mag` and `auxiliary`. Untied encoders have `W_mag` [d_in, d_sae]
    of their own, which starts as W_gate, and no r_mag.
    """

    training_arrays = 8
    evaluation_arrays = 6

    class Hyperparameters(SAE.Hyperparameters):
        l1_coefficient: Finite32 = Field(
            ge=0, description="λ, the weight of the L1 penalty, in training.l1_units; a grid"
        )
        tied: bool = Field(True, description="false: W_mag is a matrix of its own (ablation)")
        learn_r_mag: bool = Field(True, description="false: r_mag stays 0 (ablation)")
        auxiliary: Auxiliary | None = Field(
            None,
            description="decoder of the auxiliary term: frozen (the paper), unfrozen, or none for no such term "
            "(ablations); default: frozen with objective paper, unfrozen with norm_weighted",
        )

        @model_validator(mode="after")
        def _consistent(self) -> GatedSAE.Hyperparameters:
            if not self.tied and not self.learn_r_mag:
                raise ValueError("learn_r_mag: false with tied: false; untied encoders have no r_mag, leave it out")
            return self

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.b_gate = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(cfg.d_sae))
        self.tied: bool = cfg.hyperparameters.get("tied", True)
        if self.tied:
            learned = cfg.hyperparameters.get("learn_r_mag", True)
            self.r_mag = nn.Parameter(torch.zeros(cfg.d_sae), requires_grad=learned)
        else:
            self.W_mag = nn.Parameter(torch.zeros(cfg.d_in, cfg.d_sae))

    @property
    def encoder_tensors(self) -> tuple[str, ...]:
        """As of every SAE, and W_mag where it is a matrix of its own; r_mag is a ratio of encoder rows and stays."""
        return super().encoder_tensors if self.tied else (*super().encoder_tensors, "W_mag")

    def _encoders(self) -> dict[str, Tensor]:
        return {"b_gate": self.W_enc, "b_mag": self.W_enc * self.r_mag.exp() if self.tied else self.W_mag}

    @staticmethod
    def _auxiliary(hyperparameters: Mapping[str, Any], objective: Objective) -> Auxiliary:
        return hyperparameters.get("auxiliary") or DEFAULT_AUXILIARY[objective]

    @classmethod
    def canonical(cls, hyperparameters: dict[str, Any], objective: Objective, d_sae: int) -> dict[str, Any]:
        is_default = hyperparameters.get("auxiliary") == DEFAULT_AUXILIARY[objective]
        return {**hyperparameters, "auxiliary": None} if is_default else hyperparameters

    @classmethod
    def training_products(cls, hyperparameters: Mapping[str, Any], objective: Objective) -> int:
        # The auxiliary term: decode, the gradient of its input, and of W_dec if live.
        auxiliary = {"none": 0, "frozen": 2, "unfrozen": 3}[cls._auxiliary(hyperparameters, objective)]
        untied = 0 if hyperparameters.get("tied", True) else 2
        return super().training_products(hyperparameters, objective) + auxiliary + untied

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, mean_D: Tensor, objective: Objective = "paper") -> None:
        super().initialise(generator, mean_D, objective)
        if not self.tied:
            self.W_mag.copy_(self.W_enc)

    def _gate_and_magnitude(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(π_gate, π_mag): tied encoders share one product, W_mag being W_gate with rescaled rows."""
        pre_BF = self._pre(x_BD)
        pi_gate_BF = pre_BF + self.b_gate
        return pi_gate_BF, pre_BF * self.r_mag.exp() + self.b_mag if self.tied else self._pre(
            x_BD, self.b_mag, self.W_mag
        )

    def _gate_and_acts(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(π_gate, f̃), with f_mag = ReLU(π_mag)."""
        pi_gate_BF, pre_mag_BF = self._gate_and_magnitude(x_BD)
        return pi_gate_BF, torch.relu(pre_mag_BF) * (pi_gate_BF > 0)

    def encode(self, x_BD: Tensor) -> Tensor:
        return self._gate_and_acts(x_BD)[1]

    def losses(
        self, x_BD: Tensor, coefficient: float, objective: Objective = "paper", y_BD: Tensor | None = None
    ) -> Losses:
        y_BD = self._decoder_target(x_BD, y_BD)
        pi_gate_BF, acts_BF = self._gate_and_acts(x_BD)
        reconstruction = (y_BD - self._decode(acts_BF)).square().sum() / len(x_BD)
        gate_BF = torch.relu(pi_gate_BF)
        l1 = self._l1(gate_BF, objective)
        loss = reconstruction + coefficient * l1
        auxiliary = x_BD.new_zeros(())
        kind = self._auxiliary(self.cfg.hyperparameters, objective)
        if kind != "none":
            found = (y_BD, self.W_dec, self.b_dec)
            y_BD, W_dec, b_dec = found if kind == "unfrozen" else (tensor.detach() for tensor in found)
            auxiliary = (y_BD - (gate_BF @ W_dec + b_dec)).square().sum() / len(x_BD)
            loss = loss + auxiliary
        return Losses(loss, reconstruction, l1, auxiliary, acts_BF.detach())

    has_thresholds = True

    def margins(self, x_BD: Tensor) -> Tensor:
        pi_gate_BF, pre_mag_BF = self._gate_and_magnitude(x_BD)
        return torch.where(pre_mag_BF > 0, pi_gate_BF * self.W_dec.norm(dim=1), -torch.inf)

    def raise_thresholds(self, by: float) -> None:
        self.b_gate.sub_(by / self.W_dec.norm(dim=1))

    @classmethod
    def gated_relu(cls, hyperparameters: Mapping[str, Any], objective: Objective) -> GatedReLU:
        auxiliary = cls._auxiliary(hyperparameters, objective)
        if hyperparameters.get("tied", True):
            return GatedReLU("b_gate", "b_mag", log_scale="r_mag", auxiliary=auxiliary)
        return GatedReLU("b_gate", "b_mag", magnitude_weights="W_mag", auxiliary=auxiliary)

    def saelens_form(self) -> dict[str, Any]:
        if not self.tied:
            raise UserError("SAELens has no gated SAE with untied encoders (tied: false)")
        return {"architecture": "gated"}

    @torch.no_grad()
    def to_jumprelu(self) -> JumpReLUSAE:
        """The same function as a JumpReLU SAE (appendix E): W_mag and b_mag with thresholds.

        f̃ = 1[z > θ] z,  z = W_mag (x − b_dec) + b_mag,  θ = max(b_mag − exp(r_mag) ⊙ b_gate, 0)

        Exact, up to the rounding of z at the threshold.

        Raises:
            UserError: the encoders are untied, so that the gate is no threshold on z.
        """
        if not self.tied:
            raise UserError("to_jumprelu: this gated SAE has untied encoders (tied: false), which have no such form")
        scale_F = self.r_mag.exp()
        threshold_F = (self.b_mag - scale_F * self.b_gate).clamp_min(0)
        return JumpReLUSAE.of(self, self.W_enc * scale_F, self.b_mag, threshold_F)
