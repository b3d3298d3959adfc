"""`gsae-ray bench …`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from gsae_ray.cli.options import one_line_errors


@click.group()
def bench() -> None:
    """Measures this machine."""


@bench.command()
@click.option(
    "--architecture",
    type=click.Choice(["gated", "standard", "topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "p_anneal"]),
    default="gated",
    show_default=True,
    help="of the SAE",
)
@click.option("--d-in", type=click.IntRange(min=1), default=512, show_default=True, help="width of the activations")
@click.option("--width", "d_sae", type=click.IntRange(min=2), default=4096, show_default=True, help="features")
@click.option(
    "--batch", "batch_size", type=click.IntRange(min=1), default=1024, show_default=True, help="rows of a step"
)
@click.option("--l0", type=float, default=64, show_default=True, help="about how many features are active on a row")
@click.option(
    "--engine",
    type=click.Choice(["dense", "sparse-cpu", "sparse-cuda"]),
    default="dense",
    show_default=True,
    help="training.engine",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "bf16"]),
    default="float32",
    show_default=True,
    help="training.precision",
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="default: cuda for sparse-cuda, tf32 and bf16, else cpu"
)
@click.option(
    "--objective",
    type=click.Choice(["paper", "norm_weighted"]),
    help="training.objective, of gated and standard SAEs; default: norm_weighted",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="as trials.cpus")
@click.option(
    "--intervals", type=click.IntRange(min=1), default=5, show_default=True, help="of ten steps, for the median"
)
@click.option("--json", "as_json", is_flag=True, help="print a JSON object")
@one_line_errors
def step(as_json: bool, **what: Any) -> None:
    """Measures a training step, from a batch in memory to updated weights.

    Rows are random, and biases such that about as many features are active as asked for. Losses, gradient, clipping,
    Adam and the decoder's norms are in it, reading activations is not.
    """
    from gsae_ray.training.step_time import measure

    found = measure(**what)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
        return
    click.echo(
        f"{found.ms_per_step:.2f} ms a step: {found.architecture} ({found.objective}), {found.d_in} -> {found.d_sae}, "
        f"batch {found.batch_size}, L0 {found.l0:.1f}, engine {found.engine}, {found.precision}, {found.device}, "
        f"threads {found.threads}"
    )
