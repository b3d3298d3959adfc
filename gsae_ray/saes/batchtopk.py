"""The BatchTopK SAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gsae_ray.saes.base import SAEConfig
from gsae_ray.saes.calibration import BINS, bins_of, calibration_steps, lower_edge
from gsae_ray.saes.jumprelu import JumpReLUSAE
from gsae_ray.saes.registry import register
from gsae_ray.saes.topk import TopKSAE

THRESHOLD_DECAY = 0.999
"""Decay of the threshold's running mean, over batches."""


@register("batchtopk")
class BatchTopKSAE(TopKSAE):
    """Bussmann et al. 2024, "BatchTopK sparse autoencoders": of a batch of B rows the kB largest are kept.

    In training f(X) = TopK_{kB}(ReLU(Z)) over all activations of the batch together, so that rows may have more or
    fewer than k; the loss is that of the TopK SAE. A finished SAE sees rows one by one: f(x) = 1[z > θ] ReLU(z).

    θ is learnt from the first step on: the mean over batches of the smallest activation that was kept, with decay
    0.999 and the bias correction of Adam's moments. The last fiftieth of the run, at most 65,536 rows or a batch,
    leaves the weights as they are and calibrates θ: above it are k activations a row, on the mean over those rows.
    """

    training_arrays = 7

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.zeros(cfg.d_sae))  # one number; of each feature, as SAELens has it
        self.threshold_steps: Tensor
        self.register_buffer("threshold_steps", torch.zeros((), dtype=torch.int64), persistent=False)
        self.calibration_counts: Tensor
        self.register_buffer("calibration_counts", torch.zeros(BINS, dtype=torch.int64), persistent=False)
        self.calibration_rows: Tensor
        self.register_buffer("calibration_rows", torch.zeros((), dtype=torch.int64), persistent=False)
        self._calibration_steps = 0

    def prepare_training(self, rms_norm: float, steps: int, batch_size: int) -> None:
        super().prepare_training(rms_norm, steps, batch_size)
        self._calibration_steps = calibration_steps(steps, batch_size)

    @property
    def calibration_steps(self) -> int:
        return self._calibration_steps

    @property
    def scaled_tensors(self) -> tuple[str, ...]:
        return (*super().scaled_tensors, "threshold")

    def encode(self, x_BD: Tensor) -> Tensor:
        pre_BF = self._pre(x_BD, self.b_enc)
        return torch.relu(pre_BF) * (pre_BF > self.threshold)

    def _largest(self, acts_BF: Tensor) -> Tensor:
        """The k·rows largest activations of the batch; the smallest of them goes into the threshold in training."""
        kept = acts_BF.detach().flatten().topk(self.k * len(acts_BF), sorted=False).values
        if self.training:
            self._learn_threshold(kept)
        return acts_BF * (acts_BF >= kept.min())  # of equal ones all

    def _learn_threshold(self, kept_K: Tensor) -> None:
        smallest = torch.where(kept_K > 0, kept_K, torch.inf).min().to(self.threshold.dtype)
        found = smallest.isfinite()  # else no feature is active
        self.threshold_steps = self.threshold_steps + found
        share = (1 - THRESHOLD_DECAY) / (1 - THRESHOLD_DECAY ** self.threshold_steps.clamp_min(1).double())
        change_F = share.to(smallest.dtype) * (smallest - self.threshold)
        self.threshold = self.threshold + torch.where(found, change_F, 0)

    @torch.no_grad()
    def calibrate(self, x_BD: Tensor) -> None:
        """Adds a batch's activations to a histogram, and sets θ by it, within its bins of 0.1 %."""
        acts_BF = torch.relu(self._pre(x_BD, self.b_enc)).float()
        self.calibration_counts += torch.bincount(bins_of(acts_BF[acts_BF > 0]), minlength=BINS)
        self.calibration_rows += len(x_BD)
        above = self.calibration_counts.flip(0).cumsum(0).flip(0)  # activations in a bin and those above it
        wanted = self.k * self.calibration_rows
        place = (above > wanted).sum() - 1  # the last bin that has to be divided
        if place < 0:  # there are not so many activations: all are kept
            self.threshold = torch.zeros_like(self.threshold)
            return
        low, high = lower_edge(place), lower_edge(place + 1)
        share = (above[place] - wanted) / self.calibration_counts[place]
        self.threshold = torch.full_like(self.threshold, (low + share * (high - low)).item())

    def saelens_form(self) -> dict[str, Any]:
        return {"architecture": "jumprelu"}

    def to_jumprelu(self) -> JumpReLUSAE:
        """The same function as a JumpReLU SAE."""
        return JumpReLUSAE.of(self, self.W_enc, self.b_enc, self.threshold)

    def fold_norms(self) -> None:
        """Moves ‖d_i‖ into the encoder, and into each feature's θ, as of every SAE."""
        super(TopKSAE, self).fold_norms()
