"""Schedules of the learning rate and of the sparsity coefficient: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

WARMUP_START = 0.1
"""The learning rate warms up from this share of its peak, as the paper's does."""


def lr_factor(
    step: int, steps: int, warmup: float, decay: float, restarts: Sequence[int] = (), rewarm_steps: int = 0
) -> float:
    """The share of the peak learning rate at optimiser step `step` of `steps`.

    Cosine from 0.1 to 1 over the first `warmup` of the run, constant, then linear to 0 over the last `decay`; and
    cosine from 0.1 to 1 again over `rewarm_steps` from each step of `restarts` on.
    """
    decay_steps = decay * steps
    factor = _rise(step, warmup * steps)
    if steps - step < decay_steps:
        factor *= (steps - step) / decay_steps
    begun = [restart for restart in restarts if restart <= step]
    return factor * _rise(step - begun[-1], rewarm_steps) if begun else factor


def _rise(step: int, warmup_steps: float) -> float:
    """A cosine from `WARMUP_START` to 1 over `warmup_steps`, and 1 after."""
    if step >= warmup_steps:
        return 1.0
    return WARMUP_START + (1 - WARMUP_START) * 0.5 * (1 - math.cos(math.pi * step / warmup_steps))


def sparsity_factor(step: int, steps: int, warmup: float) -> float:
    """The share of the sparsity coefficient at a step: linear from 0 over the first `warmup` of the run."""
    warmup_steps = warmup * steps
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
