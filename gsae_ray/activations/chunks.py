"""What travels from producers to trials: chunks of rows as numpy arrays, and the statistics of block 0."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from gsae_ray.activations.norms import Norms

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class SiteStatistics:
    """Of the rows of block 0 at one site; every trial starts from them."""

    mean: Array
    """float32 [n], of the rows that take part (see `norms`)"""
    mean_square_norm: float
    """E‖x‖² of these"""
    norms: Norms
    """Of all rows"""


def to_array(x: Tensor) -> Array:
    """A tensor as numpy, without a copy; bfloat16 as an int16 view."""
    import torch  # here: the store's process loads this module, and does without torch

    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
