"""Engines: ways to compute the losses and the gradient of a training step, a file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsae_ray.errors import UserError, reason
from gsae_ray.training.engines.dense import DenseEngine

if TYPE_CHECKING:
    from gsae_ray.config.recipe import EngineName
    from gsae_ray.training.engines.base import Engine


def make_engine(name: EngineName, threads: int) -> Engine:
    """Makes the engine of that name.

    Args:
        name: as in a sweep file.
        threads: that it may use, where it has threads of its own.

    Raises:
        UserError: this process cannot run it.
    """
    if name == "dense":
        return DenseEngine()
    try:
        from gsae_ray.training.engines.sparse_cpu import SparseCPUEngine
    except Exception as error:  # Numba refuses versions of Python and NumPy that it does not know, with several types
        raise UserError(
            f"training.engine: {name}: Numba, which compiles its kernels, cannot be loaded: {reason(error)}; engine: "
            "dense does without"
        ) from error
    return SparseCPUEngine(threads)
