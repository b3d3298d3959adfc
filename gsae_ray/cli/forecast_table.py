"""A sweep's forecast as text: the kinds of its SAEs, then a line for each cost."""

from __future__ import annotations

import click

from gsae_ray.capacity.duration import Pace
from gsae_ray.capacity.forecast import Forecast, equal_compute
from gsae_ray.capacity.memory import Memory
from gsae_ray.cli.tables import console, print_table
from gsae_ray.driver.display import clock


def print_forecast(cost: Forecast) -> None:
    """Prints what a sweep will cost, as `gsae-ray plan` does."""
    columns = {
        "trials": [str(kind.trials) for kind in cost.kinds],
        "architecture": [f"{kind.architecture} {kind.variant}".rstrip() for kind in cost.kinds],
        "objective": [kind.objective for kind in cost.kinds],
        "d in": [f"{kind.d_in:,}" for kind in cost.kinds],
        "d sae": [f"{kind.d_sae:,}" for kind in cost.kinds],
        "parameters": [f"{kind.parameters:,}" for kind in cost.kinds],
        "FLOPs a row": [f"{kind.flops_a_row:,}" for kind in cost.kinds],
    }
    print_table(columns, console(), texts=("architecture", "objective"))
    phases = f" in {len(cost.phases)} phases ({' + '.join(map(str, cost.phases))})" if len(cost.phases) > 1 else ""
    gib, block = cost.activation_bytes / 2**30, cost.block_bytes / 2**30
    ratio = f" if all is kept, {cost.forward_ratio_without_budget:.2f} if nothing can be"
    ratio = ratio if cost.budget_bytes is None and cost.waves > 1 else ""
    unknown = "all kept if 60 % of the object store holds them, else set producers.budget_gib"
    given = f"{(cost.budget_bytes or 0) / 2**30:.2f} GiB keep {cost.kept_blocks} of {cost.blocks} blocks"
    kept = unknown if cost.budget_bytes is None else given
    references = f", with {cost.references} reference{'s' * (cost.references > 1)}" if cost.references else ""
    lines = [
        f"trials:         {cost.trials}{phases}, {cost.slots} at a time: {cost.waves} wave{'s' * (cost.waves > 1)}",
        f"rows:           {cost.rows:,} of the stream, {gib:.2f} GiB of activations, {block:.2f} GiB a block, {kept}",
        f"forward ratio:  {cost.forward_ratio:.2f}{ratio}",
        f"{f'{cost.source}:':15} {cost.model_flops:.3g} FLOPs{' at that ratio' if not ratio else ' if all is kept'}",
        f"evaluations:    {cost.evaluation_flops:.3g} FLOPs of the {cost.source}{references}",
        f"SAEs:           {cost.training_flops:.3g} FLOPs",
        f"time:           {_time(cost.pace, cost.source)}",
        f"memory:         a trial {_memory(cost.trial)}, a producer {_memory(cost.producer)}, the store "
        f"{cost.store_bytes / 2**30:.2f} GiB at most, its activations in Ray's object store",
        f"disk:           {cost.disk_bytes / 2**30:.2f} GiB",
        *equal_compute(cost.kinds),
        *cost.notices,
    ]
    for line in lines:
        click.echo(line)


def _time(pace: Pace | None, source: str) -> str:
    """How long the sweep will take, and what was assumed for that."""
    if pace is None:
        return "not known without the GPUs that it is to run on: give --address, or a --cluster that names them"
    gpus = f", {pace.gpu_hours:.3g} GPU-hours" if pace.gpu_hours else ""
    beside = f"trials {clock(pace.trials_s)}, beside them the {source} {clock(pace.model_s)}"
    return f"about {clock(pace.seconds)} ({beside}){gpus}; assumed: {pace.assumed}"


def _memory(need: Memory) -> str:
    """Of one process, on the host and on its GPU."""
    on_gpu = f" and {need.gpu / 2**30:.2f} on the GPU" if need.gpu else ""
    return f"{need.host / 2**30:.2f} GiB{on_gpu}"
