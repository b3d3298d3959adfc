"""The numbers in which the products of a training step are computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from gsae_ray.config.recipe import Precision
from gsae_ray.errors import UserError

AMPERE = (8, 0)
"""Compute capability of the first GPUs with products of TF32 and bfloat16."""


def check_precision(precision: Precision, device: torch.device) -> None:
    """Checks that a device has the products of a precision.

    Raises:
        UserError: it is a GPU without them.
    """
    if precision != "float32" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < AMPERE:
            raise UserError(
                f"training.precision: {precision}: {torch.cuda.get_device_name(device)} has no such products (compute "
                f"capability {'.'.join(map(str, capability))}, they begin with 8.0); precision: float32 runs there"
            )


@contextlib.contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """Within, products of float32 on GPUs are computed in TF32 if that is the precision, else in float32.

    Products of bfloat16 add up in float32.
    """
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
    matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction = before
