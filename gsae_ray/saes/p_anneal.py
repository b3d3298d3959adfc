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
        self.steps_done: Tensor
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64), persistent=False)
        self.strength: Tensor  # λ_t ÷ λ
        self.register_buffer("strength", torch.ones((), dtype=torch.float64), persistent=False)
        self.penalties_K2: Tensor  # of the last batches, with p_t and with the next p
        self.register_buffer("penalties_K2", torch.zeros(AVERAGED_BATCHES, 2, dtype=torch.float64), persistent=False)
        self.prepare_training(1.0, 1, 1)

    def prepare_training(self, rms_norm: float, steps: int, batch_size: int) -> None:
        self._smallest = SMALLEST * rms_norm
        self._start = math.ceil(self.cfg.hyperparameters.get("anneal_start", ANNEAL_START) * steps)
        self._annealing_steps = max(1, steps - self._start)
        self._updates = min(UPDATES, self._annealing_steps)  # at most one a step

    def updates(self, step: int) -> int:
        """How often p has fallen before a step."""
        past = step - self._start
        return 0 if past < 0 else min(self._updates, 1 + past * self._updates // self._annealing_steps)

    def exponent(self, updates: int) -> float:
        """P after so many falls."""
        end: float = self.cfg.hyperparameters.get("p_end", P_END)
        return 1 + (end - 1) * min(updates, self._updates) / self._updates

    def losses(self, x_BD: Tensor, coefficient: float, objective: Objective = "unit_norm") -> Losses:
        step = int(self.steps_done)
        updates = self.updates(step)
        if self.training and updates > self.updates(step - 1):
            self._match()
        acts_BF = self.encode(x_BD)
        reconstruction = (x_BD - self.decode(acts_BF)).square().sum() / len(x_BD)
        raised_BF = torch.where(acts_BF > 0, acts_BF + self._smallest, 1.0).pow(self.exponent(updates))
        summed = torch.where(acts_BF > 0, raised_BF, 0.0).sum() / len(x_BD)
        if self.training:
            self._note(step, acts_BF.detach(), summed.detach(), self.exponent(updates + 1))
        penalty = self.strength.to(summed.dtype) * summed
        loss = reconstruction + coefficient * penalty
        return Losses(loss, reconstruction, penalty.detach(), x_BD.new_zeros(()), acts_BF.detach())

    def _note(self, step: int, acts_BF: Tensor, summed: Tensor, next_p: float) -> None:
        """Keeps a batch's penalty, as it is and with the next p, for `_match`."""
        next_sum = acts_BF[acts_BF > 0].add(self._smallest).pow(next_p).sum() / len(acts_BF)
        self.penalties_K2[step % AVERAGED_BATCHES] = torch.stack([summed, next_sum]).double()
        self.steps_done += 1

    def _match(self) -> None:
        """Changes λ_t so that the penalty with the p of this step is what it was with the one before."""
        before, after = self.penalties_K2.sum(0)  # of batches since p fell before; 0 for those that there were not
        self.strength = torch.where((before > 0) & (after > 0), self.strength * before / after, self.strength)
        self.penalties_K2 = torch.zeros_like(self.penalties_K2)

    def saelens_form(self) -> dict[str, Any]:
        return {"architecture": "standard"}

    @classmethod
    def gated_relu(cls, hyperparameters: Mapping[str, Any], objective: Objective) -> None:
        """None: its gradient is not that of an L1 penalty."""
        return
