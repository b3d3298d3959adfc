"""`gsae-ray compare`."""

from __future__ import annotations

import click

import gsae_ray
from gsae_ray.cli.options import (
    launch_option,
    one_line_errors,
    read_storage_option,
    site_option,
    tokens_option,
    tracking_option,
)


@click.command()
@click.argument("experiment")
@click.option(
    "--by",
    default="architecture",
    show_default=True,
    metavar="COLUMN",
    help="the column of the frontier whose values are compared: recipe, d_sae, lr, origin (references too), …",
)
@click.option("--base", metavar="VALUE", help="what the others are compared with; default: standard, of origins own")
@site_option
@launch_option
@tokens_option
@click.option("--mixed-recipes", is_flag=True, help="compare SAEs of several recipes, too")
@tracking_option
@read_storage_option
@click.option("--json", "as_json", is_flag=True, help="print a JSON list of objects, one a number")
@one_line_errors
def compare(
    experiment: str,
    by: str,
    base: str | None,
    site: str | None,
    launch: str | None,
    tokens: str | None,
    mixed_recipes: bool,
    tracking_uri: str | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Compares kinds of SAEs of a sweep: L0 at equal loss recovered and FVU, loss recovered at equal L0, γ, area.

    At each site, with 95 % intervals over the held-out text (and over seeds where every setting has two or more).
    """
    from gsae_ray.results.frontier import MIXED

    rows = gsae_ray.frontier(experiment, site, launch, tracking_uri, tokens=tokens, storage=storage)
    mixed = {"mixed_recipes": mixed_recipes, "mixed_tokens": tokens == MIXED}
    found = gsae_ray.compare(rows, by, base, tracking_uri=tracking_uri, **mixed)
    if not as_json:
        click.echo(str(found))
        return
    click.echo(found.table.to_json(orient="records", indent=2, double_precision=15))
    for note in found.notes:
        click.echo(note, err=True)
