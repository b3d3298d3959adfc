"""The calibration of thresholds at the end of a run: how long it takes, and the bins of the histogram that it reads."""

from __future__ import annotations

import torch
from torch import Tensor

CALIBRATION_ROWS = 65_536
"""Rows that thresholds are calibrated on in the end, at most."""
CALIBRATION_SHARE = 50
"""The run's steps ÷ those of calibration, at least."""
MANTISSA_BITS = 10
"""Bits of a number's mantissa that its bin keeps: bins are 0.1 % wide."""
LEAST_EXPONENT = -32
"""Of the numbers of the first bin; the last one's is 31."""
BINS = 64 << MANTISSA_BITS
_DROPPED = 23 - MANTISSA_BITS
_FIRST = (127 + LEAST_EXPONENT) << MANTISSA_BITS


def calibration_steps(steps: int, batch_size: int) -> int:
    """How many of a run's last steps calibrate."""
    enough = max(1, CALIBRATION_ROWS // batch_size)
    return max(min(1, steps - 1), min(enough, steps // CALIBRATION_SHARE))


def bins_of(positive_K: Tensor) -> Tensor:
    """The bin of each of these numbers, float32; those beyond the first or the last bin go there."""
    return ((positive_K.view(torch.int32) >> _DROPPED) - _FIRST).clamp(0, BINS - 1)


def lower_edge(bins_K: Tensor) -> Tensor:
    """The least number of each of these bins, int64; of the one after the last, the end of that."""
    return ((bins_K + _FIRST) << _DROPPED).to(torch.int32).view(torch.float32)
