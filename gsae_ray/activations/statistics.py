"""The statistics of block 0 at one site, gathered in one pass over its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from gsae_ray.activations.chunks import SiteStatistics
from gsae_ray.activations.norms import Norms, square_norms, takes_part


class Gathering:
    """Sums over rows that come batch by batch, in the order of the tokens."""

    def __init__(self, width: int) -> None:
        self._sum_n = torch.zeros(width, dtype=torch.float64)
        self._square = 0.0
        self._square_norms: list[Tensor] = []

    def add(self, x_Rn: Tensor) -> None:
        """The rows of a batch [R, n], on any device."""
        self._sum_n += x_Rn.sum(0, dtype=torch.float64).cpu()
        self._square += x_Rn.double().square().sum().item()
        self._square_norms.append(square_norms(x_Rn).cpu())

    def statistics(self, x_Rn: Tensor, place_R: Tensor, position_R: Tensor, max_norm: float | None) -> SiteStatistics:
        """Of all rows that came.

        Args:
            x_Rn: the same rows [R, n] in another order, on the CPU.
            place_R: where in `x_Rn` each row that came lies.
            position_R: where in its context each lies.
            max_norm: as `DatasetSettings.max_norm`.
        """
        norms_R = torch.cat(self._square_norms)
        norms = Norms.of(norms_R, position_R, max_norm)
        sum_n, square = self._sum_n, self._square
        if norms.left_out:  # the limit is known only now: float64 has the digits to take off again what is above it
            part_R = takes_part(norms_R, norms.limit)
            sum_n = sum_n - x_Rn[place_R[~part_R]].sum(0, dtype=torch.float64)
            square = norms_R[part_R].sum().item()  # of squares it has not
        taking_part = norms.rows - norms.left_out
        return SiteStatistics((sum_n / taking_part).float().numpy(), square / taking_part, norms)
