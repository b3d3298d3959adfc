"""What a sweep will cost, before anything runs: from the sweep file and the model's configuration alone.

Neither weights nor data are read, so rows are counted as all positions of a context, but for the first where that is
skipped.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gsae_ray.activations.layout import DTYPE_BYTES
from gsae_ray.activations.models import load_skeleton
from gsae_ray.activations.sites import capture, site_widths
from gsae_ray.errors import UserError, first_line
from gsae_ray.plan import check_pursuit, fetch_parents, parent_configs
from gsae_ray.saes import REGISTRY, SAEConfig
from gsae_ray.saes.io import build
from gsae_ray.sweep import EQUAL_COMPUTE, Sweep
from gsae_ray.trial import TrialSpec

FLOAT = 4  # bytes: SAEs are trained in float32


@dataclasses.dataclass(frozen=True)
class Kind:
    """Trials that cost the same: one architecture, variant, objective and width at sites of one width."""

    architecture: str
    variant: str
    objective: str
    d_in: int
    d_sae: int
    parameters: int
    products: int
    """Dense products of a training step."""
    flops_a_row: int
    """Of a training step: 2nM a product."""
    trials: int = 0


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What `gsae-ray plan` prints."""

    trials: int
    phases: tuple[int, ...]
    """Trials that start at once, and those that start from the finished SAEs of the first."""
    slots: int
    """Trials at a time."""
    waves: int
    rows: int
    """Rows of the stream that the longest trial reads."""
    activation_bytes: int
    """Of all blocks at all sites."""
    block_bytes: int
    """Of one block at all sites: a producer makes it in memory, and the store holds it and, if it can, the next."""
    budget_bytes: int | None
    forward_ratio: float
    """With the budget; without one, if everything is kept."""
    forward_ratio_without_budget: float
    """If nothing could be kept."""
    model_flops: float
    """Of all forward passes, to the deepest site."""
    training_flops: float
    """Of the SAEs' dense products."""
    trial_bytes: int
    """Memory of the largest trial: weights, gradients, Adam's moments, a batch and its features."""
    disk_bytes: int
    """Checkpoints of the trials that run, finished SAEs here and in MLflow, tokens."""
    kinds: tuple[Kind, ...]
    notices: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def forward_ratio(waves: Sequence[int], kept: float) -> float:
    """Rows through the model ÷ distinct rows: every wave computes what was not kept (law 3).

    For waves of equal length that is 1 + (waves − 1)(1 − kept ÷ rows).

    Args:
        waves: rows that the longest trial of each wave reads.
        kept: rows of the stream's beginning that stay.
    """
    distinct = max(waves)
    return (min(kept, distinct) + sum(max(0.0, rows - kept) for rows in waves)) / distinct


def default_slots(sweep: Sweep) -> int:
    """Trials at a time on this machine."""
    cpus = max(1, (os.cpu_count() or 1) // sweep.trials.cpus)
    gpus = sweep.trials.gpus
    free = torch.cuda.device_count() - sweep.producers.gpus * sweep.producers.count
    fitting = min(cpus, int(free / gpus)) if gpus else cpus
    return max(1, min(fitting, sweep.trials.max_concurrent or fitting))


def forecast(sweep: Sweep, storage: Path, slots: int | None = None, tracking_uri: str | None = None) -> Forecast:
    """What the sweep will cost.

    Args:
        storage: where parents that a sweep names by run are kept.
        slots: trials at a time; default: as many as this machine holds.
    Raises:
        UserError: the model's configuration cannot be loaded, or something does not fit together.
    """
    skeleton = load_skeleton(sweep.model)
    counter = FlopCounterMode(display=False)
    tokens_BT = torch.zeros(1, sweep.model.context_size, dtype=torch.long, device="meta")
    try:
        d_in = site_widths(skeleton, sweep.used_sites)
        with counter:
            capture(skeleton, tokens_BT, sweep.used_sites, use_cache=True)
    except (RuntimeError, NotImplementedError) as error:  # some layers, as mixtures of experts, need their weights
        raise UserError(
            f"model.name: {sweep.model.name!r} cannot be forecast, since it does not run without its weights "
            f"({first_line(error)})"
        ) from error
    parents = parent_configs(fetch_parents(sweep, storage / sweep.name / "parents", tracking_uri))
    trials = sweep.expand(d_in, {}, parents)
    check_pursuit(sweep, trials)
    slots = slots or default_slots(sweep)
    phases = [[t for t in trials if t.follows == follow] for follow in (False, True)]
    # Of each wave, the rows of its longest trial.
    waves = [
        max(trial.training.trained_tokens for trial in phase[start : start + slots])
        for phase in phases
        for start in range(0, len(phase), slots)
    ]
    rows = max(trial.training.trained_tokens for trial in trials)
    bytes_a_row = DTYPE_BYTES[sweep.model.dtype] * sum(d_in.values())
    budget = None if sweep.producers.budget_gib is None else int(sweep.producers.budget_gib * 2**30)
    ratio = forward_ratio(waves, rows if budget is None else budget / bytes_a_row)
    contexts = math.ceil(rows / (sweep.model.context_size - sweep.dataset.skip_first_position))

    parameters = {trial.name: _parameters(trial) for trial in trials}
    training = sum(_flops_a_row(trial) * trial.training.trained_tokens for trial in trials)
    largest = sorted(parameters.values())[-slots:]
    return Forecast(
        trials=len(trials),
        phases=tuple(len(phase) for phase in phases if phase),
        slots=slots,
        waves=len(waves),
        rows=rows,
        activation_bytes=rows * bytes_a_row,
        block_bytes=min(rows, sweep.shuffle_tokens) * bytes_a_row,
        budget_bytes=budget,
        forward_ratio=ratio,
        forward_ratio_without_budget=forward_ratio(waves, 0),
        model_flops=counter.get_total_flops() * contexts * ratio,
        training_flops=float(training),
        trial_bytes=max(
            FLOAT * (4 * parameters[t.name] + t.training.batch_size * (2 * t.d_in + 4 * t.d_sae)) for t in trials
        ),
        # A checkpoint has the weights and two moments; two are kept, a third is being written. MLflow copies the SAEs.
        disk_bytes=FLOAT * (9 * sum(largest) + 2 * sum(parameters.values())) + 4 * contexts * sweep.model.context_size,
        kinds=_kinds(trials, parameters),
        notices=tuple(sweep.notices()),
    )


def _parameters(trial: TrialSpec) -> int:
    with torch.device("meta"):
        sae = build(
            SAEConfig(
                architecture=trial.architecture,
                d_in=trial.d_in,
                d_sae=trial.d_sae,
                hyperparameters=trial.hyperparameters,
            )
        )
    return sum(parameter.numel() for parameter in sae.parameters())


def _products(trial: TrialSpec) -> int:
    return REGISTRY[trial.architecture].training_products(trial.hyperparameters, trial.training.objective)


def _flops_a_row(trial: TrialSpec) -> int:
    return 2 * trial.d_in * trial.d_sae * _products(trial)


def _kinds(trials: list[TrialSpec], parameters: dict[str, int]) -> tuple[Kind, ...]:
    kinds: dict[Kind, int] = {}
    for trial in trials:
        kind = Kind(
            architecture=trial.architecture,
            variant=trial.variant,
            objective=trial.training.objective,
            d_in=trial.d_in,
            d_sae=trial.d_sae,
            parameters=parameters[trial.name],
            products=_products(trial),
            flops_a_row=_flops_a_row(trial),
        )
        kinds[kind] = kinds.get(kind, 0) + 1
    return tuple(dataclasses.replace(kind, trials=count) for kind, count in kinds.items())


def equal_compute(kinds: Sequence[Kind]) -> list[str]:
    """What the convention of 1.5 × the width comes to, for each objective that both architectures are trained with."""
    lines = []
    for objective in dict.fromkeys(kind.objective for kind in kinds):
        products = {k.architecture: k.products for k in kinds if k.objective == objective and not k.variant}
        if {"gated", "standard"} <= set(products):
            ratio = products["gated"] / products["standard"]
            lines.append(
                f"equal compute ({objective}): at equal width a gated step has {ratio:.2f} x the dense FLOPs of a "
                f"standard one; the convention of {EQUAL_COMPUTE} x the width gives the standard SAE "
                f"{EQUAL_COMPUTE / ratio:.2f} x the FLOPs of the gated (train/step_ms of the trials: what was measured)"
            )
    return lines
