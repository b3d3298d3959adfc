"""Schedules as fractions of a run: pure functions of the step."""

from __future__ import annotations

import math

WARMUP_START = 0.1
"""The learning rate warms up from this share of its peak (the paper, section 3 of its recipe)."""


def lr_factor(step: int, steps: int, warmup: float, decay: float) -> float:
    """Share of the peak learning rate at optimiser step `step` of `steps`.

    Cosine from 0.1 to 1 over the first `warmup` of the run, constant, then linear to 0 over the last `decay`.
    """
    warmup_steps, decay_steps = warmup * steps, decay * steps
    factor = 1.0
    if step < warmup_steps:
        factor = WARMUP_START + (1 - WARMUP_START) * 0.5 * (1 - math.cos(math.pi * step / warmup_steps))
    if steps - step < decay_steps:
        factor *= (steps - step) / decay_steps
    return factor


def sparsity_factor(step: int, steps: int, warmup: float) -> float:
    """Share of the sparsity coefficient at a step: linear from 0 over the first `warmup` of the run."""
    warmup_steps = warmup * steps
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
