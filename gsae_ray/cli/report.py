"""`gsae-ray report` and `plot`: a sweep as a page to read, and its frontier as a picture."""

from __future__ import annotations

from pathlib import Path

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
from gsae_ray.results.picture_formats import check_picture
from gsae_ray.results.report import REPORT


@click.command()
@click.argument("experiment")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=REPORT,
    show_default=True,
    help="the file to write; what is there is replaced",
)
@site_option
@launch_option
@tokens_option
@tracking_option
@read_storage_option
@one_line_errors
def report(
    experiment: str,
    out: Path,
    site: str | None,
    launch: str | None,
    tokens: str | None,
    tracking_uri: str | None,
    storage: str | None,
) -> None:
    """Writes a sweep as one HTML page that opens from disk: its answer, frontier, training curves, failures and cost.

    Every launch writes one, too: report.html beside its frontier.png, and among its run's artifacts in MLflow.
    """
    gsae_ray.report(experiment, out, site, launch, tracking_uri, tokens, storage)
    click.echo(f"written to {out}, {out.stat().st_size / 1e6:.1f} MB: open it in a browser, no network is needed")


@click.command()
@click.argument("experiment")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="frontier.png",
    show_default=True,
    help="the file to write: PNG, SVG or PDF, by its suffix",
)
@site_option
@launch_option
@tokens_option
@tracking_option
@read_storage_option
@one_line_errors
def plot(
    experiment: str,
    out: Path,
    site: str | None,
    launch: str | None,
    tokens: str | None,
    tracking_uri: str | None,
    storage: str | None,
) -> None:
    """Writes the frontier of a sweep as a picture, with error bars: PNG, SVG or PDF.

    Seeds of one setting are one point, their mean, with one standard deviation to either side; the bars of others are
    95 % intervals over the held-out text.
    """
    check_picture(out)  # here, too: the rest takes seconds to load
    gsae_ray.plot(experiment, out, site, launch, tracking_uri, tokens, storage)
    click.echo(f"written to {out}")
