"""What travels from producers to trials: chunks of rows as numpy arrays, and the statistics of block 0."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class SiteStatistics:
    """Of the rows of block 0 at one site; every trial starts from them."""

    mean: Array
    """float32 [n]"""
    mean_square_norm: float
    """E‖x‖²"""


def to_array(x: Tensor) -> Array:
    """A tensor as numpy, without a copy; bfloat16 as an int16 view."""
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def from_array(array: Array, dtype: str) -> Tensor:
    """A *copy* of rows that came from `to_array`: arrays from the object store are shared and must not be touched."""
    copied = torch.from_numpy(np.array(array, copy=True, order="C"))
    return copied.view(torch.bfloat16) if dtype == "bfloat16" else copied
