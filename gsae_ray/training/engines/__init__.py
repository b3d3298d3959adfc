"""Engines: ways to compute the losses and the gradient of a training step, a file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsae_ray.errors import UserError, reason
from gsae_ray.training.engines.dense import DenseEngine

if TYPE_CHECKING:
    from gsae_ray.config.recipe import EngineName, Precision
    from gsae_ray.training.engines.base import Engine


def check_engine(name: EngineName) -> None:
    """Checks that this process could make an engine of that name.

    Raises:
        UserError: it could not.
    """
    compiler = {"sparse-cpu": "Numba", "sparse-cuda": "Triton"}.get(name)
    try:
        if name == "sparse-cpu":
            import gsae_ray.training.engines.sparse_cpu
        elif name == "sparse-cuda":
            import gsae_ray.training.engines.sparse_cuda  # noqa: F401
    except Exception as error:  # compilers refuse what they do not know with several types
        builds = " (it comes with PyTorch's builds for CUDA)" if name == "sparse-cuda" else ""
        raise UserError(
            f"training.engine: {name}: {compiler}, which compiles its kernels, cannot be loaded{builds}: "
            f"{reason(error)}; engine: dense does without"
        ) from error


def make_engine(name: EngineName, threads: int, precision: Precision = "float32") -> Engine:
    """Makes the engine of that name, ready to train.

    Args:
        name: as in a sweep file.
        threads: that it may use, where it has threads of its own.
        precision: of the products of the dense engine.

    Raises:
        UserError: this process cannot run it.
    """
    compile_engine(name)
    if name == "dense":
        return DenseEngine(precision)
    if name == "sparse-cuda":
        from gsae_ray.training.engines.sparse_cuda import SparseCUDAEngine

        return SparseCUDAEngine()
    from gsae_ray.training.engines.sparse_cpu import SparseCPUEngine

    return SparseCPUEngine(threads)


def compile_engine(name: EngineName) -> None:
    """Compiles what the engine of that name needs, once a process, or loads what was compiled before.

    Triton compiles for the shapes and the GPU that it is called with, at the first step.

    Raises:
        UserError: this process cannot run it.
    """
    check_engine(name)
    if name == "sparse-cpu":
        from gsae_ray.training.engines.sparse_cpu import compile_kernels

        compile_kernels()
