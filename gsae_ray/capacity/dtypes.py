"""What `model.dtype` costs where producers run on CPUs: measured here, since processors differ in what they have."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

import torch

from gsae_ray.config.sweep import Sweep
from gsae_ray.training.threads import torch_threads

TURNS = 5
"""Times that a product is computed in each dtype, in turn; the quickest counts, whatever else the machine does."""
ABOUT = 0.1
"""By how much less or more time than float32 a dtype has to take to be worth a line."""


@functools.cache
def product_times(dtype: str) -> dict[str, float]:
    """How long a core of this machine takes for a layer's product in a dtype, and in bfloat16, ÷ in float32.

    Products are most of a forward pass. Measured on the built-in model, on a processor with AVX512-BF16: bfloat16 0.41
    (the product alone 0.4 to 0.5), float16 5.8 (5.2 to 7.3).
    """
    seconds: dict[str, list[float]] = {name: [] for name in ("float32", "bfloat16", dtype)}
    with torch_threads(1), torch.inference_mode():
        for turn, (name, taken) in ((turn, item) for turn in range(1 + TURNS) for item in seconds.items()):
            x, weights = (torch.ones(n, 512, dtype=getattr(torch, name)) for n in (256, 512))
            started = time.perf_counter()
            torch.nn.functional.linear(x, weights)
            if turn:  # the first prepares
                taken.append(time.perf_counter() - started)
    return {name: min(taken) / min(seconds["float32"]) for name, taken in seconds.items()}


def dtype_notices(sweep: Sweep) -> list[str]:
    """What the user should know of `model.dtype`, a line at most; nothing of producers on GPUs."""
    if sweep.producers.gpus:
        return []
    return describe(sweep.language_model.dtype, product_times(sweep.language_model.dtype))


def describe(dtype: str, times: Mapping[str, float]) -> list[str]:
    """The line about a dtype of the language model.

    Args:
        dtype: `model.dtype`.
        times: of it and of bfloat16, as `product_times` gives them.
    """
    bfloat16, own = times["bfloat16"], times[dtype]
    saves = bfloat16 < 1 - ABOUT
    where = "on this machine's processor"
    if dtype != "float32" and own > 1 + ABOUT:
        other = f"bfloat16 ({bfloat16:.2g} x) or float32" if dtype != "bfloat16" and saves else "float32"
        return [f"model.dtype: {dtype} takes about {own:.2g} x the time of float32 {where}; take {other}"]
    if dtype == "float32" and saves:
        return [
            f"model.dtype: bfloat16 would take about {bfloat16:.2g} x the time of float32 for the language model "
            f"{where}, and half the memory for activations; its numbers have 8 bits, those of float32 24"
        ]
    return []
