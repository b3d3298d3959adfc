"""Trains an SAE for a few steps at each line that it reads, and prints how long a step took; `peers.py` starts it.

    python peers_worker.py LIBRARY OBJECTIVE ARCHITECTURE D_IN WIDTH BATCH L0 THREADS ROUNDS

LIBRARY is an engine of ours, or dictionary_learning or sae_lens: then it runs in an environment without ours. Rates of
learning are so small that the number of active features stays as it is made.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

STEPS = 10
LR = 1e-12
Interval = Callable[[], tuple[float, float]]


def ours(engine: str, objective: str, architecture: str, sizes: list[int], l0: float, rounds: int) -> Interval:
    from gsae_ray.training.step_time import Stepping

    d_in, d_sae, batch_size = sizes
    names: Any = {"engine": engine, "objective": objective}
    steps = STEPS * (rounds + 1)
    return Stepping(architecture, d_in, d_sae, batch_size, l0, **names, steps=steps, steps_per_interval=STEPS).interval


def bias_for(l0: float, d_sae: int, norm: float) -> float:
    """Of a feature with a row w, w x is normally distributed with variance ‖w‖²."""
    return statistics.NormalDist(0, norm).inv_cdf(l0 / d_sae)


def timed(batches: list[Tensor], step: Callable[[Tensor], None], active: Callable[[Tensor], Tensor]) -> Interval:
    def interval() -> tuple[float, float]:
        started = time.perf_counter()
        for i in range(STEPS):
            step(batches[i % len(batches)].clone())
        ms = 1000 * (time.perf_counter() - started) / STEPS
        with torch.no_grad():
            return ms, (active(batches[0]) > 0).sum().item() / len(batches[0])

    return interval


def dictionary_learning(architecture: str, sizes: list[int], l0: float, batches: list[Tensor]) -> Interval:
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.standard import StandardTrainer

    trainer: Any = {"gated": GatedSAETrainer, "standard": StandardTrainer}[architecture](
        steps=10**6, activation_dim=sizes[0], dict_size=sizes[1], layer=0, lm_name="rows", device="cpu", lr=LR, seed=0
    )
    with torch.no_grad():
        bias = trainer.ae.gate_bias if architecture == "gated" else trainer.ae.encoder.bias
        bias.fill_(bias_for(l0, sizes[1], trainer.ae.encoder.weight.norm(dim=1).mean().item()))
    steps = iter(range(10**6))
    return timed(batches, lambda x_BD: trainer.update(next(steps), x_BD), trainer.ae.encode)


def sae_lens(architecture: str, sizes: list[int], l0: float, batches: list[Tensor]) -> Interval:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    kinds: Any = {
        "gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
        "standard": (StandardTrainingSAE, StandardTrainingSAEConfig),
    }
    sae_class, config_class = kinds[architecture]
    sae = sae_class(config_class(d_in=sizes[0], d_sae=sizes[1]))
    with torch.no_grad():
        bias = sae.b_gate if architecture == "gated" else sae.b_enc
        bias.fill_(bias_for(l0, sizes[1], sae.W_enc.norm(dim=0).mean().item()))
    config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=sizes[2], lr=LR, lr_end=LR, device="cpu"
    )
    trainer = SAETrainer(config, sae, iter(batches))
    return timed(batches, trainer.step, sae.encode)


def main() -> None:
    library, objective, architecture, *rest = sys.argv[1:]
    *sizes, threads, rounds = [int(float(rest[i])) for i in (0, 1, 2, 4, 5)]
    l0 = float(rest[3])
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    if library in ("dictionary_learning", "sae_lens"):
        batches = [torch.randn(sizes[2], sizes[0], generator=generator) for _ in range(4)]
        make = {"dictionary_learning": dictionary_learning, "sae_lens": sae_lens}[library]
        interval = make(architecture, sizes, l0, batches)
    else:
        interval = ours(library, objective, architecture, sizes, l0, rounds)
    for _ in sys.stdin:
        ms, found = interval()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"ms": ms, "l0": found, "peak_mb": peak}), flush=True)


if __name__ == "__main__":
    main()
