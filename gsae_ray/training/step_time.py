"""How long a training step takes, on random rows with a given number of active features."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.reader import RowStream
from gsae_ray.activations.statistics import Norms, SiteStatistics
from gsae_ray.config.recipe import EngineName, Precision, TrainingSettings
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.saes import REGISTRY, Objective
from gsae_ray.saes.objective import Choice
from gsae_ray.saes.topk import DEAD_TOKENS
from gsae_ray.training.threads import torch_threads
from gsae_ray.training.trainer import Trainer

SITE = "blocks.0.hook_resid_post"
"""A name; the rows are of no model."""
LR = 1e-12
"""So small that the number of active features stays."""


MIN_L0 = 0.01
BIASES = {"standard": "b_enc", "gated": "b_gate", "jumprelu": "b_enc", "p_anneal": "b_enc"}
"""Architecture -> the bias that decides how many features are active; those of top-k kind have k."""
ARCHITECTURES = ("gated", "standard", "topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "p_anneal")
"""Those that can be measured."""


@dataclasses.dataclass(frozen=True)
class StepTime:
    """A measurement of training steps: from a batch in memory to updated weights."""

    architecture: str
    objective: str
    engine: str
    precision: str
    device: str
    d_in: int
    d_sae: int
    batch_size: int
    threads: int
    l0: float
    """As measured: mean number of features that fired on a row."""
    ms_per_step: float
    """Median over intervals of the mean of an interval's steps."""
    steps: int
    """That were measured."""


class _RandomRows:
    """A block of normally distributed rows with E‖x‖² = n."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        shape = layout.rows[0], layout.widths[SITE]
        self.rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()

    def statistics(self) -> dict[str, SiteStatistics]:
        n = float(self.rows.shape[1])
        norms = Norms(len(self.rows), n, float("inf"), 0, 0.0, ())
        return {SITE: SiteStatistics(np.zeros(self.rows.shape[1], np.float32), mean_square_norm=n, norms=norms)}

    def open(self, block: int) -> None:
        pass

    def chunk(self, index: int) -> NDArray[Any]:
        first, end = self.layout.chunks(0, SITE)[index]
        return self.rows[first:end]


class Stepping:
    """A trainer of random rows that stays as sparse as it is made; for as many steps as are asked for."""

    def __init__(
        self,
        architecture: str,
        d_in: int,
        d_sae: int,
        batch_size: int,
        l0: float,
        engine: EngineName,
        objective: Choice | None,
        steps: int,
        steps_per_interval: int,
        precision: Precision = "float32",
        device: str = "cpu",
    ) -> None:
        """Makes the trainer; arguments are those of `measure`.

        Raises:
            UserError: no rows have so few or so many active features, or the engine cannot be run.
        """
        if not MIN_L0 <= l0 <= d_sae / 2:
            raise UserError(f"--l0: {l0:g} of {d_sae} features; give {MIN_L0:g} to half of them")
        _check_device(engine, precision, device)
        self.steps_per_interval = steps_per_interval
        sae, what_for = REGISTRY[architecture], _objective(architecture, objective)
        if architecture in BIASES:
            hyperparameters: dict[str, Any] = {str(sae.sparsity_hyperparameter): 1.0}
        else:  # as in a long run, in which no feature is dead
            hyperparameters = {"k": max(1, round(l0)), "dead_after_tokens": DEAD_TOKENS}
        if engine != "dense" and sae.gated_relu(hyperparameters, what_for) is None:
            raise UserError(f"--engine: {engine} has no {architecture} SAEs; --engine dense has")
        settings = TrainingSettings(
            tokens=steps * batch_size,
            batch_size=batch_size,
            engine=engine,
            precision=precision,
            log_every_tokens=steps_per_interval * batch_size,
            lr_warmup=0.0,
        )
        trial = TrialSpec.make(
            identity={},
            site=SITE,
            architecture=architecture,
            d_in=d_in,
            d_sae=d_sae,
            hyperparameters=hyperparameters,
            training=settings.resolve(LR, 0, what_for, "modern"),
        )
        block = 4 * batch_size
        layout = Layout((block,) * -(-steps * batch_size // block), {SITE: d_in}, "float32", chunk_bytes=2**26)
        self.trainer = Trainer(trial, RowStream(_RandomRows(layout), layout, SITE), device)
        if architecture not in BIASES:
            return
        with torch.no_grad():
            # Of a feature with a row w, w x is normally distributed with variance ‖w‖².
            norm = self.trainer.sae.W_enc.norm(dim=0).mean().item()
            bias = statistics.NormalDist(0, norm).inv_cdf(l0 / d_sae)
            if architecture == "jumprelu":
                bias += self.trainer.sae.get_parameter("threshold").mean().item()
            self.trainer.sae.get_parameter(BIASES[architecture]).fill_(bias)

    def interval(self) -> tuple[float, float]:
        """(milliseconds a step, L0) of the next steps."""
        started = time.perf_counter()
        metrics = self.trainer.train_interval()
        return 1000 * (time.perf_counter() - started) / self.steps_per_interval, metrics["l0"]


def _objective(architecture: str, given: Choice | None) -> Objective:
    """What is minimised.

    Raises:
        UserError: one is given, and there is no choice.
    """
    objectives = REGISTRY[architecture].objectives
    if given is not None and given not in objectives:
        raise UserError(f"--objective: a {architecture} SAE has one only; leave it out")
    return given or objectives[-1]


def _check_device(engine: EngineName, precision: Precision, device: str) -> None:
    """Checks that there is such a device, and that it is one for the engine.

    Raises:
        UserError: it is not.
    """
    if precision != "float32" and engine != "dense":
        raise UserError(f"--precision: {precision} is for --engine dense; the sparse ones have float32's products")
    if device == "cuda" and not torch.cuda.is_available():
        if engine == "sparse-cuda":
            what = f"--engine: {engine} is for GPUs"
        elif precision != "float32":
            what = f"--precision: {precision} is for GPUs"
        else:
            what = "--device: cuda"
        raise UserError(
            f"{what}, but PyTorch finds no GPU here; --engine dense and sparse-cpu, in float32, run on the CPU"
        )
    if engine == ("sparse-cpu" if device == "cuda" else "sparse-cuda"):
        raise UserError(f"--engine: {engine} does not run on --device {device}; dense runs on both")
    if precision != "float32" and device == "cpu":
        raise UserError(f"--precision: {precision} is for --device cuda; float32 runs on both")


def measure(
    architecture: str,
    d_in: int,
    d_sae: int,
    batch_size: int,
    l0: float,
    engine: EngineName = "dense",
    objective: Choice | None = None,
    threads: int = 1,
    intervals: int = 5,
    steps_per_interval: int = 10,
    precision: Precision = "float32",
    device: str | None = None,
) -> StepTime:
    """Measures a training step with everything that belongs to it: losses, gradient, clipping, Adam, norms.

    Args:
        architecture: one of `ARCHITECTURES`, by the defaults of its hyperparameters.
        d_in: width of the activations.
        d_sae: number of features.
        batch_size: rows of a step.
        l0: about how many features are to be active on a row.
        engine: that computes losses and gradients.
        objective: what is minimised, where there is a choice; default: norm_weighted. Everything else is the schedule
            `modern`.
        threads: of PyTorch and the engine.
        intervals: that the median is taken over.
        steps_per_interval: that are timed together.
        precision: of the dense engine's products on a GPU.
        device: cpu or cuda; default: cuda where engine or precision is for GPUs, else cpu.

    Raises:
        UserError: no rows have so few or so many active features, or the engine cannot be run there.
    """
    device = device or ("cuda" if engine == "sparse-cuda" or precision != "float32" else "cpu")
    steps = (intervals + 1) * steps_per_interval
    with torch_threads(threads):
        stepping = Stepping(
            architecture, d_in, d_sae, batch_size, l0, engine, objective, steps, steps_per_interval, precision, device
        )
        stepping.interval()  # compiles, and makes memory
        times, fired = zip(*(stepping.interval() for _ in range(intervals)), strict=True)
    return StepTime(
        architecture=architecture,
        objective=_objective(architecture, objective),
        engine=engine,
        precision=precision,
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        d_in=d_in,
        d_sae=d_sae,
        batch_size=batch_size,
        threads=threads,
        l0=fired[-1],
        ms_per_step=statistics.median(times),
        steps=intervals * steps_per_interval,
    )
