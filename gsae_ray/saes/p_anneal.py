"""The p-annealed SAE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from gsae_ray.fields import Fraction
from gsae_ray.saes.base import Losses, Objective, SAEConfig
from gsae_ray.saes.registry import register
from gsae_ray.saes.standard import StandardSAE

P_END = 0.2
ANNEAL_START = 0.2
UPDATES = 10
"""How often p falls."""
AVERAGED_BATCHES = 10
"""Batches that λ is matched over when p falls."""
SMALLEST = 1e-8
"""Added to activations, in units of √E‖x‖²: the gradient of f^p has no bound at 0."""


@register("p_anneal")
class PAnnealSAE(StandardSAE):
    """Karvonen et al. 2024, "Measuring progress in dictionary learning for language model interpretability", section 4.

    A standard SAE whose penalty comes nearer to L0 while it is trained:

    L = E[ ‖x − x̂‖² + λ_t Σ_i f_i^{p_t} ],  decoder rows d_i of unit norm

    p_t is 1 up to `anneal_start` of the run, from where it falls in ten equal steps, evenly spread over the rest, to
    `p_end`. At each of them λ_t changes so that the penalty is as large as before, on the mean of the last ten batches
    (fewer where p fell more often).
    """

    objectives = ("unit_norm",)
    training_arrays = 6

    class Hyperparameters(StandardSAE.Hyperparameters):
        p_end: Fraction = Field(P_END, gt=0, description="p at the end of the run")
        anneal_start: Fraction = Field(ANNEAL_START, lt=1, description="fraction of the run after which p falls")

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.strength: Tensor  # λ_t ÷ λ
        self.register_buffer("strength", torch.ones((), dtype=torch.float64), persistent=False)
        self.penalties_K2: Tensor  # of the last batches, with p_t and with the next p
        self.register_buffer("penalties_K2", torch.zeros(AVERAGED_BATCHES, 2, dtype=torch.float64), persistent=False)
        self.prepare_training(1.0, 1, 1)

    def prepare_training(self, rms_norm: float, steps: int, batch_size: int) -> None:
        self._step, self._smallest = 0, SMALLEST * rms_norm
        self._start = max(1, math.ceil(self.cfg.hyperparameters.get("anneal_start", ANNEAL_START) * steps))
        self._annealing_steps = max(1, steps - self._start)
        self._updates = min(UPDATES, self._annealing_steps)  # at most one a step

    def updates(self, step: int) -> int:
        """How often p has fallen before a step."""
        past = step - self._start
        return 0 if past < 0 else min(self._updates, 1 + past * self._updates // self._annealing_steps)

    def exponent(self, updates: int) -> float:
        """Returns p after so many falls."""
        end: float = self.cfg.hyperparameters.get("p_end", P_END)
        return 1 + (end - 1) * min(updates, self._updates) / self._updates

    def losses(
        self, x_BD: Tensor, coefficient: float, objective: Objective = "unit_norm", y_BD: Tensor | None = None
    ) -> Losses:
        y_BD = self._decoder_target(x_BD, y_BD)
        updates = self.updates(self._step)
        acts_BF = self.encode(x_BD)
        reconstruction = (y_BD - self._decode(acts_BF)).square().sum() / len(x_BD)
        summed = self._penalty(acts_BF, self.exponent(updates))
        if self.training:  # for the next fall of p
            next_sum = self._penalty(acts_BF.detach(), self.exponent(updates + 1))
            sums_2 = torch.stack([summed.detach(), next_sum]).double()
            self.penalties_K2[self._step % AVERAGED_BATCHES] = sums_2
        penalty = self.strength.to(summed.dtype) * summed
        loss = reconstruction + coefficient * penalty
        return Losses(loss, reconstruction, penalty.detach(), x_BD.new_zeros(()), acts_BF.detach())

    def _penalty(self, acts_BF: Tensor, p: float) -> Tensor:
        """Returns E[Σ_i f_i^p]."""
        on_BF = acts_BF > 0
        return torch.where(on_BF, torch.where(on_BF, acts_BF + self._smallest, 1.0).pow(p), 0.0).sum() / len(acts_BF)

    def begin_step(self, step: int) -> None:
        """Where p falls, changes λ_t so that the penalty is what it was before."""
        self._step = step
        if self.updates(step) == self.updates(step - 1):
            return
        before, after = self.penalties_K2.sum(0)  # of batches since p fell before; 0 for those that there were not
        self.strength = torch.where((before > 0) & (after > 0), self.strength * before / after, self.strength)
        self.penalties_K2 = torch.zeros_like(self.penalties_K2)

    def saelens_form(self) -> dict[str, Any]:
        return {"architecture": "standard"}

    @classmethod
    def gated_relu(cls, hyperparameters: Mapping[str, Any], objective: Objective) -> None:
        """None: its gradient is not that of an L1 penalty."""
        return
