"""The last calibration of a trial that asks for an L0: all thresholds are shifted alike, at frozen weights."""

from __future__ import annotations

import torch
from torch import Tensor

from gsae_ray.saes import SAE
from gsae_ray.saes.calibration import BINS, bins_of, lower_edge

REACH = 0.05
"""Margins below minus this share of √E‖x‖² are not kept: 1.25 times the L0 took a shift of 0.025 at most, measured on
standard, gated, JumpReLU and p-annealed SAEs of L0 7 to 37."""


class MarginCalibration:
    """Finds the shift of all thresholds that makes L0 the target, on the mean over the rows that it has seen."""

    def __init__(self, target: float, mean_square_norm: float, device: torch.device) -> None:
        """Begins without rows.

        Args:
            target: the L0 that is asked for.
            mean_square_norm: E‖x‖² of the activations that training sees.
            device: of the SAE.
        """
        self.target = target
        self._least = -REACH * mean_square_norm**0.5
        self.counts_K = torch.zeros(2 * BINS, dtype=torch.int64, device=device)
        """Margins in each bin, from the least one up: bins of negative ones, then those of positive ones."""
        self.rows = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def observe(self, sae: SAE, x_BD: Tensor) -> Tensor:
        """Adds a batch of training rows. Returns how many rows each feature fires on with the shift found so far."""
        margins_BF = sae.margins(x_BD).float()
        margins_K = margins_BF[margins_BF > self._least]
        positive_K = margins_K > 0
        bins_K = bins_of(margins_K.abs())
        self.counts_K += torch.bincount(torch.where(positive_K, BINS + bins_K, BINS - 1 - bins_K), minlength=2 * BINS)
        self.rows += len(x_BD)
        shift = self.shift()
        return (margins_BF > (0.0 if shift is None else shift)).sum(0)

    @property
    def l0(self) -> float:
        """Without a shift, on the rows that it has seen."""
        return int(self.counts_K[BINS:].sum()) / int(self.rows)

    def shift(self) -> float | None:
        """The margin that as many are above as the target says; None: not even with what it may reach are there."""
        above_K = self.counts_K.flip(0).cumsum(0).flip(0)  # margins in a bin and those above it
        wanted = round(self.target * int(self.rows))
        place = int((above_K >= wanted).sum()) - 1  # the last bin that some are to be left in, or all
        if place < 0:
            return None
        share = (int(above_K[place]) - wanted) / max(1, int(self.counts_K[place]))
        is_positive = place >= BINS
        bin_ = torch.tensor(place - BINS if is_positive else BINS - 1 - place)
        inner, outer = float(lower_edge(bin_)), float(lower_edge(bin_ + 1))
        low, high = (inner, outer) if is_positive else (-outer, -inner)
        return low + share * (high - low)

    # ---- state ----

    def state(self) -> dict[str, Tensor]:
        """All that a successor needs, as tensors by name; none before the first row, as there are many bins."""
        return {"margins": self.counts_K, "margin_rows": self.rows} if self.rows else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Goes back to what `state` returned."""
        if "margins" in tensors:
            self.counts_K.copy_(tensors["margins"])
            self.rows.copy_(tensors["margin_rows"])
