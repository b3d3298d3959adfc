"""The dense engine: the architecture's own losses, differentiated by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from gsae_ray.saes import SAE, Objective
from gsae_ray.training.engines.base import StepResult, Update
from gsae_ray.training.optimiser import Adam


class DenseEngine:
    """Works for every architecture; activations are an array [batch, d_sae]."""

    torch_threads = None

    def prepare(self, sae: SAE) -> None:
        pass

    def step(self, sae: SAE, x_BD: Tensor, coefficient: float, objective: Objective, share: float = 1.0) -> StepResult:
        """As `Engine.step`; gradients are added to those of a batch's other parts, of which this one is a `share`."""
        losses = sae.losses(x_BD, coefficient, objective)
        (share * losses.loss).backward()
        losses_4 = torch.stack([part.detach() for part in losses[:4]])
        return StepResult(losses_4, (losses.acts_BF > 0).sum(0))

    def update(self, sae: SAE, optimiser: Adam, update: Update) -> None:
        if update.unit_norm:
            sae.project_decoder_gradient()
        if update.clip:
            torch.nn.utils.clip_grad_norm_(sae.learnt_parameters().values(), update.clip)
        optimiser.step(update.lr)
        optimiser.zero_grad()
        if update.unit_norm:
            sae.normalise_decoder()
