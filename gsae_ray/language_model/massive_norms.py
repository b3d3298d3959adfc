"""Rows of massive norm: on real models a few rows (attention sinks) hold most of E‖x‖², and are best left out."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def square_norms(x_Rn: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """‖x‖² of each row [R]; in float64 finite rows do not overflow."""
    return torch.linalg.vector_norm(x_Rn, dim=1, dtype=dtype).square()


def square_norm_limit(square_norms_R: Tensor, max_norm: float | None) -> float:
    """The ‖x‖² above which a row takes no part: (`max_norm` × the median norm)², or infinity where all take part.

    Args:
        square_norms_R: ‖x‖² of each row.
        max_norm: as `DatasetSettings.max_norm`.
    """
    median = square_norms_R.median().item()
    return max_norm**2 * median if max_norm is not None and median > 0 else math.inf


def takes_part(square_norms_R: Tensor, limit: float) -> Tensor:
    """Whether each row takes part [R]. A row that is not finite does: it is an error, which must be seen."""
    return (square_norms_R <= limit) | ~square_norms_R.isfinite()
