"""Computes the statistics of block 0 in one pass over its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from gsae_ray.activations.statistics import TOP_SHARE, Norms, SiteStatistics
from gsae_ray.language_model.massive_norms import square_norm_limit, square_norms, takes_part


def norms_of(square_norms_R: Tensor, position_R: Tensor, max_norm: float | None) -> Norms:
    """The `Norms` of rows.

    Args:
        square_norms_R: ‖x‖² of each row, float64, on the CPU.
        position_R: position of each row in its context.
        max_norm: as `DatasetSettings.max_norm`.
    """
    rows = len(square_norms_R)
    top_K, indices_K = square_norms_R.topk(max(1, int(TOP_SHARE * rows)))
    held_K, total = top_K.cumsum(0), square_norms_R.sum().item()
    most = int((held_K < 0.9 * held_K[-1]).sum()) + 1
    limit = square_norm_limit(square_norms_R, max_norm)
    return Norms(
        rows=rows,
        median_square_norm=square_norms_R.median().item(),
        limit=limit,
        left_out=int((~takes_part(square_norms_R, limit)).sum()),
        sink_share=held_K[-1].item() / total if total else 0.0,
        sink_positions=tuple(sorted(set(position_R[indices_K[:most]].tolist()))),
    )


class StatisticsAccumulator:
    """Sums over the rows of block 0 at one site, batch by batch in the order of the tokens."""

    def __init__(self, width: int) -> None:
        self._sum_n = torch.zeros(width, dtype=torch.float64)
        self._square = 0.0
        self._square_norms: list[Tensor] = []

    def add(self, x_Rn: Tensor) -> None:
        """Adds the rows of a batch [R, n], on any device."""
        self._sum_n += x_Rn.sum(0, dtype=torch.float64).cpu()
        self._square += x_Rn.double().square().sum().item()
        self._square_norms.append(square_norms(x_Rn).cpu())

    def statistics(self, x_Rn: Tensor, place_R: Tensor, position_R: Tensor, max_norm: float | None) -> SiteStatistics:
        """The statistics of all rows that were added.

        Args:
            x_Rn: the same rows [R, n] in another order, on the CPU.
            place_R: index in `x_Rn` of each row, in the order in which they were added.
            position_R: position of each in its context, in the same order.
            max_norm: as `DatasetSettings.max_norm`.
        """
        norms_R = torch.cat(self._square_norms)
        norms = norms_of(norms_R, position_R, max_norm)
        sum_n, square = self._sum_n, self._square
        if norms.left_out:  # the limit is known only now; float64 has the digits to subtract the rows above it
            part_R = takes_part(norms_R, norms.limit)
            sum_n = sum_n - x_Rn[place_R[~part_R]].sum(0, dtype=torch.float64)
            square = norms_R[part_R].sum().item()  # of squares it has not: they are summed again
        taking_part = norms.rows - norms.left_out
        return SiteStatistics((sum_n / taking_part).float().numpy(), square / taking_part, norms)
