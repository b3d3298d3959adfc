"""`gsae-ray evaluate`."""

from __future__ import annotations

import click

import gsae_ray
from gsae_ray.cli.options import one_line_errors, tracking_option
from gsae_ray.cli.verbose import STDERR
from gsae_ray.errors import UserError


@click.command()
@click.argument("sources", metavar="SAE...", nargs=-1, required=True)
@click.option(
    "--like",
    "experiment",
    required=True,
    metavar="EXPERIMENT",
    help="the experiment whose launch they are compared with",
)
@click.option("--site", metavar="S", help="the launch's site where they are spliced in")
@click.option(
    "--name", metavar="NAME", help="what the frontier and its picture call them; default: each by what stands here"
)
@click.option("--launch", metavar="ID", help="a launch's id; default: the newest")
@tracking_option
@click.option(
    "--storage",
    metavar="PATH",
    help="the launch's storage, where its held-out tokens are, and evaluations are kept; default: ./gsae_runs",
)
@click.option("--json", "as_json", is_flag=True, help="print a JSON list of objects, one an SAE")
@one_line_errors
def evaluate(
    sources: tuple[str, ...],
    experiment: str,
    site: str | None,
    name: str | None,
    launch: str | None,
    tracking_uri: str | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Evaluates SAEs from elsewhere on the held-out tokens of a launch, as its own were.

    SAE is a folder in any format that is read here, a trial's directory, the id of a run of MLflow, or an SAE of the
    Hugging Face hub. The model runs in this process, without Ray.

    The SAEs become references of the launch: `gsae-ray frontier` shows them from then on, beside the sweep's own. What
    was evaluated before is not evaluated again. `references` in a sweep file has the sweep do the same.
    """
    if site is None:
        raise UserError(
            "--site: missing; it is where the SAEs are spliced in, e.g. blocks.2.hook_resid_post (`gsae-ray frontier "
            "EXPERIMENT` shows the launch's sites)"
        )
    where = {"name": name, "launch": launch, "tracking_uri": tracking_uri, "storage": storage}
    rows = gsae_ray.evaluate(sources, experiment, site, **where, console=STDERR)
    if as_json:
        click.echo(rows.to_json(orient="records", indent=2, double_precision=15))
    else:
        shared = rows["origin"].duplicated(keep=False)
        for row in rows.itertuples():
            called = f"{row.origin} ({row.source})" if shared[row.Index] else row.origin
            quality = (
                f"loss recovered {row.loss_recovered:.4f} [{row.loss_recovered_low:.4f}, {row.loss_recovered_high:.4f}]"
                if row.loss_recovered == row.loss_recovered
                else f"FVU {row.fvu:.4f}"
            )
            click.echo(f"{called}: L0 {row.l0:.4g} [{row.l0_low:.4g}, {row.l0_high:.4g}], {quality}")
    for note in rows.attrs["notes"]:
        click.echo(note, err=True)
