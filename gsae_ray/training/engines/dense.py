"""The dense engine: the architecture's own losses, differentiated by autograd."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from gsae_ray.config.recipe import Precision
from gsae_ray.saes import SAE, Objective
from gsae_ray.training.engines.base import BYTES_AN_ENTRY, LARGE_BATCH, StepResult, Update
from gsae_ray.training.engines.precision import check_precision, products_in
from gsae_ray.training.optimiser import Adam


class DenseEngine:
    """Works for every architecture; activations are an array [batch, d_sae].

    Weights and the optimiser's state are float32 in every precision, and so are sums of products; of bf16 the result of
    each product is rounded, that of a gradient too.
    """

    torch_threads = None

    def __init__(self, precision: Precision = "float32") -> None:
        """Makes the engine.

        Args:
            precision: of products: bf16 by PyTorch's autocast, tf32 by its setting for products of float32.
        """
        self.precision = precision

    def prepare(self, sae: SAE) -> None:
        """Checks the device.

        Raises:
            UserError: it has no products of that precision.
        """
        check_precision(self.precision, sae.W_dec.device)

    def step(
        self,
        sae: SAE,
        x_BD: Tensor,
        coefficient: float,
        objective: Objective,
        y_BD: Tensor | None = None,
        share: float = 1.0,
    ) -> StepResult:
        """As `Engine.step`; gradients are added to those of a batch's other parts, of which this one is a `share`."""
        with contextlib.nullcontext() if self.precision == "float32" else products_in(self.precision):
            with torch.autocast(x_BD.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                losses = sae.losses(x_BD, coefficient, objective, y_BD)
            (share * losses.loss).backward()
        losses_4 = torch.stack([part.detach() for part in losses[:4]])
        return StepResult(losses_4, (losses.acts_BF > 0).sum(0))

    def step_in_parts(self, sae: SAE, x_BD: Tensor, coefficient: float, objective: Objective) -> StepResult:
        """A step for sparse engines: of a large batch in parts, whose arrays take no more than theirs."""
        parts = 1
        if len(x_BD) * sae.cfg.d_sae > LARGE_BATCH:
            parts = math.ceil(sae.training_arrays * x_BD.element_size() / BYTES_AN_ENTRY)
        found = []
        for part_BD in x_BD.chunk(parts):
            share = len(part_BD) / len(x_BD)
            losses_4, fired_F = self.step(sae, part_BD, coefficient, objective, None, share)
            found.append((share * losses_4, fired_F))
        return StepResult(*(torch.stack(values).sum(0) for values in zip(*found, strict=True)))

    def update(self, sae: SAE, optimiser: Adam, update: Update) -> None:
        if update.unit_norm:
            sae.project_decoder_gradient()
        if update.clip:
            torch.nn.utils.clip_grad_norm_(sae.learnt_parameters().values(), update.clip)
        optimiser.step(update.lr)
        optimiser.zero_grad()
        if update.unit_norm:
            sae.normalise_decoder()
