"""`gsae-ray collect`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import gsae_ray
from gsae_ray.cli.options import SchemaCommand, one_line_errors, set_option, storage_option, tracking_option
from gsae_ray.cli.verbose import STDERR
from gsae_ray.errors import INTERRUPTED


@click.command(cls=SchemaCommand)
@click.argument("sweep", type=click.Path(path_type=Path))
@click.option("--out", required=True, metavar="DIR", help="folder to write to; new, or empty")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["safetensors", "saelens"]),
    default="safetensors",
    show_default=True,
    help="safetensors: the rows, with a schema; saelens: SAELens' cache, whole contexts, a data set a hook",
)
@click.option("--site", "sites", metavar="S", multiple=True, help="only this site; again for more; default: all")
@click.option(
    "--tokens",
    metavar="N",
    type=click.IntRange(min=1),
    help="training rows, but for the rest of a block; default: those that the longest trial reads",
)
@set_option
@tracking_option
@storage_option
@one_line_errors
def collect(
    sweep: Path,
    out: str,
    layout: str,
    sites: tuple[str, ...],
    tokens: int | None,
    overrides: tuple[str, ...],
    tracking_uri: str | None,
    storage: str | None,
) -> None:
    """Writes the activations of a sweep to disk: training rows, and held-out ones.

    The language model runs once over the contexts that the sweep's trials would read, in this process. The files are
    gathered in DIR.unfinished, which becomes DIR when all are there: a command that was interrupted goes on.
    """
    try:
        collected = gsae_ray.collect(
            sweep,
            out,
            layout=layout,  # type: ignore[arg-type]
            sites=sites,
            tokens=tokens,
            overrides=overrides,
            tracking_uri=tracking_uri,
            storage=storage,
            console=STDERR,
        )
    except KeyboardInterrupt:
        click.echo("\ngsae-ray: stopped. What is written is kept: the same command goes on from there.", err=True)
        sys.exit(INTERRUPTED)
    click.echo(
        f"{collected.folder}: {collected.rows:,} training rows and {collected.heldout_rows:,} held-out rows at "
        f"{len(collected.sites)} sites, {collected.nbytes / 2**30:.2f} GiB"
    )
