"""Predicts how long a sweep will take, from its FLOPs: a rough figure, which states its assumptions."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence

import torch

from gsae_ray.capacity.dtypes import product_times
from gsae_ray.capacity.gpus import gpu_of
from gsae_ray.capacity.nodes import PRODUCER, TRAINER, Node, nodes_for
from gsae_ray.config.recipe import EngineName, Precision, TrialTraining
from gsae_ray.config.sweep import Sweep
from gsae_ray.training.threads import torch_threads

EFFICIENCY = 0.3
"""FLOP/s of training and forward passes ÷ those of a GPU's data sheet, or of a large product on a core.

Measured: training on an H100 had 0.55 alone, and 0.4 with twelve trials on the GPU (tests/benchmarks/gpu.py,
2026-11-26).
"""
ENGINE_SHARES: dict[EngineName, float] = {"dense": 1.0, "sparse-cpu": 0.5, "sparse-cuda": 0.5}
"""About how long a trial trains by an engine ÷ by the dense one.

By the sparse one on CPUs a step takes 0.13 to 0.5 of it (docs/benchmarks.md), but the first steps are dense. That on
GPUs has not been measured, and is taken to be like it.
"""
PRECISION_SHARES: dict[Precision, float] = {"float32": 1.0, "tf32": 0.5, "bf16": 0.5}
"""The same by the precision of products. Not measured: those of data sheets are 0.03 to 0.25, of products alone."""


def time_share(training: TrialTraining) -> float:
    """About how long a trial trains ÷ by the dense engine in float32."""
    return ENGINE_SHARES[training.engine] * PRECISION_SHARES[training.precision]


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long a sweep works, without starting up."""

    trials_s: float
    """Seconds of all waves of trials."""
    model_s: float
    """Seconds of the producers, which make blocks and evaluate beside the trials."""
    gpu_hours: float
    assumed: str
    """What the figures rest on, in words."""

    @property
    def seconds(self) -> float:
        return max(self.trials_s, self.model_s)


def pace(
    sweep: Sweep,
    nodes: Sequence[Node] | None,
    waves_flops: Sequence[Sequence[float]],
    model_flops: float,
    slots: int,
    gpus_a_trial: float,
) -> Pace | None:
    """Predict how long a sweep works; None where it is not known which GPUs there are.

    Args:
        sweep: the sweep.
        nodes: the nodes of the cluster; None for this machine.
        waves_flops: FLOPs of each trial of each wave, times its `time_share`.
        model_flops: FLOPs of everything that producers do.
        slots: trials at a time.
        gpus_a_trial: GPUs of a trial, see `fit.gpu_shares`.
    """
    producers, trials = sweep.producers, sweep.trials
    core = _core_flops() if not (producers.gpus and gpus_a_trial) else 0.0
    a_trial = EFFICIENCY * trials.cpus * core
    slower = 1.0 if producers.gpus else product_times(sweep.compute_dtype)[sweep.compute_dtype]
    a_producer = EFFICIENCY * producers.cpus * core / slower
    share = 1.0  # part of a GPU, or of its cores, that a trial has
    if gpus_a_trial:
        found = [gpu_of(node.resources) for node in nodes_for(TRAINER, nodes or ()) if node.resources.get("GPU")]
        known = [gpu.float32 for gpu in found if gpu is not None]
        if not known:
            return None
        a_trial, share = EFFICIENCY * min(known) * 1e12, min(gpus_a_trial, 1)  # a trial uses one GPU
    if producers.gpus:
        found = [gpu_of(node.resources) for node in nodes_for(PRODUCER, nodes or ()) if node.resources.get("GPU")]
        known = [gpu.float32 if sweep.compute_dtype == "float32" else gpu.bfloat16 for gpu in found if gpu is not None]
        if not known:
            return None
        a_producer = EFFICIENCY * min(producers.gpus, 1) * min(known) * 1e12  # layers on several GPUs work in turn
    # A GPU works for the trials that it has: alone the longest has all of it, all together share what there is.
    waves = [max(*wave, sum(wave) / max(1, slots * share)) for wave in waves_flops]
    trials_s, model_s = sum(waves) / a_trial, model_flops / (producers.count * a_producer)
    gpus = producers.count * producers.gpus + slots * gpus_a_trial
    cores = f", cores as fast as this machine's ({core / 1e9:.0f} GFLOP/s)" if core else ""
    return Pace(
        trials_s=trials_s,
        model_s=model_s,
        gpu_hours=gpus * max(trials_s, model_s) / 3600,
        assumed=f"{EFFICIENCY:.0%} of the FLOP/s of data sheets and of large products{cores}; start-up is not counted",
    )


@functools.cache
def _core_flops(seconds: float = 0.2) -> float:
    """FLOP/s of a large matrix product on one core of this machine, measured for so many seconds."""
    with torch_threads(1):
        a, b = torch.ones(256, 1024), torch.ones(1024, 1024)
        products, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            a @ b
            products += 1
        return 2 * a.numel() * b.shape[1] * products / (time.perf_counter() - started)
