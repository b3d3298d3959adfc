"""What a training step minimises, in parts."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Losses(NamedTuple):
    """Sums over features and coordinates, means over the batch."""

    loss: Tensor
    """What is minimised."""
    reconstruction: Tensor
    """‖x − x̂‖²"""
    sparsity: Tensor
    """The sparsity penalty without its coefficient, e.g. ‖f‖₁ or Σ f_i ‖d_i‖."""
    auxiliary: Tensor
    """Further terms; 0 where there are none."""
    acts_BF: Tensor
    """Feature activations of the batch, detached."""
