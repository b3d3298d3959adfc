"""Predicts what a sweep will cost, from the sweep file and the configuration of its source alone."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gsae_ray.activations.layout import DTYPE_BYTES
from gsae_ray.activations.retention import forward_ratio, kept_blocks
from gsae_ray.capacity import fit
from gsae_ray.capacity.duration import Pace, pace, time_share
from gsae_ray.capacity.extras import extra_notices
from gsae_ray.capacity.memory import FLOAT, STORE_PROCESS, Memory, parameter_count, trial_memory
from gsae_ray.capacity.nodes import Node
from gsae_ray.capacity.sources import cost_of
from gsae_ray.config.sweep import EQUAL_COMPUTE, Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.saes import REGISTRY, SAEConfig


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
    """Dense matrix products of a training step."""
    flops_a_row: int
    """FLOPs of a training step, a row: 2 d_in d_sae for each product; of transcoders as `flops_a_row`."""
    trials: int = 0


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What `gsae-ray plan` prints."""

    source: str
    """What makes the rows, in words."""
    trials: int
    phases: tuple[int, ...]
    """How many trials may start at once, and how many start from the finished SAEs of those."""
    slots: int
    """Trials at a time."""
    waves: int
    """How many times the slots are filled."""
    rows: int
    """Rows of the stream that the longest trial reads."""
    blocks: int
    """Blocks of the stream that these rows span; each is made whole."""
    kept_blocks: int
    """Blocks that the store keeps for late trials: as many as the budget allows; without a budget, all."""
    activation_bytes: int
    """Bytes of all blocks at all sites."""
    block_bytes: int
    """Bytes of one block at all sites: a producer makes it in memory, and the store holds it and, if it can, the
    next."""
    budget_bytes: int | None
    """Bytes of activations that the store keeps; None where that is not known."""
    forward_ratio: float
    """Blocks through the language model ÷ distinct blocks, with the budget; without one, if everything is kept."""
    forward_ratio_without_budget: float
    """The same if nothing could be kept."""
    model_flops: float
    """FLOPs of all forward passes that make activations; they stop at the deepest site."""
    references: int
    """SAEs from elsewhere that are evaluated beside the trials."""
    evaluation_flops: float
    """FLOPs of the language model's passes over the held-out tokens."""
    training_flops: float
    """FLOPs of the SAEs' dense products."""
    trial: Memory
    """Memory of the trial that needs most."""
    producer: Memory
    store_bytes: int
    """Bytes of the store's process, and of the activations that it keeps at most in Ray's object store."""
    disk_bytes: int
    """Bytes of the checkpoints of the trials that run, of the finished SAEs and snapshots here and in MLflow, and of
    the tokens."""
    pace: Pace | None
    """None where it is not known which GPUs there are."""
    kinds: tuple[Kind, ...]
    notices: tuple[str, ...]
    """What else the user should know, a line each."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def default_slots(sweep: Sweep) -> int:
    """Predicts how many trials run at a time on this machine."""
    cpus = max(1, (os.cpu_count() or 1) // sweep.trials.cpus)
    gpus = sweep.trials.gpus
    gpus = 1 if gpus == "auto" else gpus  # what a GPU holds is known where its name is: on a cluster
    free = torch.cuda.device_count() - sweep.producers.gpus * sweep.producers.count
    fitting = min(cpus, int(free / gpus)) if gpus else cpus
    return max(1, min(fitting, sweep.trials.max_concurrent or fitting))


def forecast(
    sweep: Sweep,
    slots: int | None = None,
    nodes: Sequence[Node] | None = None,
    parents: Mapping[str, tuple[SAEConfig, str]] | None = None,
) -> Forecast:
    """Predict what a sweep will cost.

    Args:
        sweep: the sweep, as its file says it.
        slots: trials at a time; default: as many as the cluster holds, or this machine.
        nodes: the nodes of the cluster that it is to run on.
        parents: see `Sweep.expand`.

    Raises:
        UserError: the model's configuration cannot be loaded, or something does not fit together, or the cluster.
    """
    source = cost_of(sweep)
    sweep, d_in = source.sweep, source.widths
    trials = sweep.expand(d_in, {}, parents)
    rows_a_block = sweep.rows_a_block
    block_bytes = rows_a_block * DTYPE_BYTES[source.dtype] * sum(d_in.values())
    producer = source.producer_memory(block_bytes, trials)
    notices = extra_notices(sweep, trials, nodes is None)
    gpus_a_trial = 1.0 if sweep.trials.gpus == "auto" else sweep.trials.gpus
    notices += sweep.notices() + source.notices()
    if nodes is not None:
        notices += fit.check_producers(sweep, nodes, producer)
        a_trial = fit.largest(sweep, fit.trial_requests(sweep, nodes, trials).values())
        gpus_a_trial = a_trial.gpus
        fitting = fit.trials_at_once(sweep, nodes, a_trial, fit.producer_request(sweep, nodes, producer))
        if fitting is None and slots is None:
            raise UserError(
                "--slots: the cluster has no node for trials yet; give how many trials it is to hold at a time, or the "
                "file of its launcher as --cluster beside --address"
            )
        slots = slots or fitting
    slots = slots or default_slots(sweep)
    phases = [[t for t in trials if t.follows == follow] for follow in (False, True)]
    # Of each wave, the blocks that its longest trial reads.
    in_waves = [phase[start : start + slots] for phase in phases for start in range(0, len(phase), slots)]
    waves = [math.ceil(max(t.training.trained_tokens for t in wave) / rows_a_block) for wave in in_waves]
    blocks = max(waves)
    budget = None if sweep.producers.budget_gib is None else int(sweep.producers.budget_gib * 2**30)
    if nodes is not None and not all(node.to_come for node in nodes):  # a description has no object stores
        budget = fit.budget(sweep, nodes, block_bytes, blocks * block_bytes, len(d_in))
    budget_blocks = blocks if budget is None else budget // block_bytes
    ratio = forward_ratio(waves, budget_blocks)

    parameters = {trial.name: parameter_count(trial) for trial in trials}
    training = {trial.name: flops_a_row(trial) * trial.training.trained_tokens for trial in trials}
    model_flops, evaluation_flops = source.block_flops * blocks * ratio, source.evaluation_flops(trials)
    largest = sorted(parameters.values())[-slots:]
    saved = sum(parameters[trial.name] * (1 + len(trial.training.snapshots_at)) for trial in trials)
    return Forecast(
        source=source.name,
        trials=len(trials),
        phases=tuple(len(phase) for phase in phases if phase),
        slots=slots,
        waves=len(waves),
        rows=max(trial.training.trained_tokens for trial in trials),
        blocks=blocks,
        kept_blocks=kept_blocks(blocks, budget_blocks),
        activation_bytes=blocks * block_bytes,
        block_bytes=block_bytes,
        budget_bytes=budget,
        forward_ratio=ratio,
        forward_ratio_without_budget=forward_ratio(waves, 0),
        model_flops=model_flops,
        references=len(sweep.references),
        evaluation_flops=evaluation_flops,
        training_flops=float(sum(training.values())),
        pace=pace(
            sweep,
            nodes,
            [[training[t.name] * time_share(t.training) for t in wave] for wave in in_waves],
            model_flops + evaluation_flops,
            slots,
            gpus_a_trial,
        ),
        trial=max((trial_memory(t, sweep.trials.gpus != 0) for t in trials), key=lambda m: (m.gpu, m.host)),
        producer=producer,
        store_bytes=STORE_PROCESS + (blocks * block_bytes if budget is None else budget),
        # A checkpoint has the weights and two moments; two are kept, a third is being written. MLflow copies the SAEs.
        disk_bytes=FLOAT * (9 * sum(largest) + 2 * saved) + source.disk_bytes(blocks),
        kinds=_kinds(trials, parameters),
        notices=tuple(notices),
    )


def _products(trial: TrialSpec) -> int:
    return REGISTRY[trial.architecture].training_products(trial.hyperparameters, trial.training.objective)


def flops_a_row(trial: TrialSpec) -> int:
    """FLOPs of the dense products of a training step, a row."""
    if trial.d_out is None:
        return 2 * trial.d_in * trial.d_sae * _products(trial)
    skip = 4 * trial.d_in * trial.d_out if trial.skip else 0  # forward, and the gradient of its weights
    return (trial.d_in + trial.d_out) * trial.d_sae * _products(trial) + skip  # encoders and decoders, by halves


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
            flops_a_row=flops_a_row(trial),
        )
        kinds[kind] = kinds.get(kind, 0) + 1
    return tuple(dataclasses.replace(kind, trials=count) for kind, count in kinds.items())


def equal_compute(kinds: Sequence[Kind]) -> list[str]:
    """Lines on what the paper's convention of equal compute, 1.5 × the width, comes to here.

    One for each objective that both gated and standard SAEs are trained with.
    """
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
