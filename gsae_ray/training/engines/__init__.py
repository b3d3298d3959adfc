"""Engines: ways to compute the losses and the gradient of a training step, a file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsae_ray.errors import UserError, reason
from gsae_ray.training.engines.dense import DenseEngine

if TYPE_CHECKING:
    from gsae_ray.config.recipe import EngineName
    from gsae_ray.training.engines.base import Engine


def check_engine(name: EngineName) -> None:
    """Checks that this process could make an engine of that name.

    Raises:
        UserError: it could not.
    """
    if name != "dense":
        try:
            import gsae_ray.training.engines.sparse_cpu  # noqa: F401
        except Exception as error:  # Numba refuses what it does not know with several types
            raise UserError(
                f"training.engine: {name}: Numba, which compiles its kernels, cannot be loaded: {reason(error)}; "
                "engine: dense does without"
            ) from error


def make_engine(name: EngineName, threads: int) -> Engine:
    """Makes the engine of that name, ready to train.

    Args:
        name: as in a sweep file.
        threads: that it may use, where it has threads of its own.

    Raises:
        UserError: this process cannot run it.
    """
    compile_engine(name)
    if name == "dense":
        return DenseEngine()
    from gsae_ray.training.engines.sparse_cpu import SparseCPUEngine

    return SparseCPUEngine(threads)


def compile_engine(name: EngineName) -> None:
    """Compiles what the engine of that name needs, once a process, or loads what was compiled before.

    Raises:
        UserError: this process cannot run it.
    """
    check_engine(name)
    if name != "dense":
        from gsae_ray.training.engines.sparse_cpu import compile_kernels

        compile_kernels()
