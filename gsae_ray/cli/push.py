"""`gsae-ray push`."""

from __future__ import annotations

from pathlib import Path

import click

import gsae_ray
from gsae_ray.cli.options import launch_option, one_line_errors, site_option, tokens_option, tracking_option


@click.command()
@click.argument("experiment")
@click.option("--repo", required=True, metavar="OWNER/NAME", help="repository of models; it is made if need be")
@click.option("--private", is_flag=True, help="make the repository private; one that is there has to be")
@click.option(
    "--dry-run",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="write what would be uploaded to this folder, and upload nothing",
)
@click.option("--base-model", metavar="NAME", help="the language model on the hub, where the sweep read a local folder")
@click.option(
    "--license", metavar="L", help="of these SAEs, for the model card, e.g. apache-2.0; default: none is named"
)
@site_option
@launch_option
@tokens_option
@tracking_option
@one_line_errors
def push(
    experiment: str,
    repo: str,
    private: bool,
    dry_run: Path | None,
    base_model: str | None,
    license: str | None,
    site: str | None,
    launch: str | None,
    tokens: str | None,
    tracking_uri: str | None,
) -> None:
    """Publishes the SAEs on a sweep's frontier on the Hugging Face hub.

    Each becomes a folder SITE/width_N/l0_N, which SAELens and gsae_ray.load read by its name in the repository. With
    them go a model card (README.md, replaced where there is one) with the frontier as a table with intervals, its
    picture, and the recipe. All of it is one commit: what is in the repository under other names stays, and the same
    command again changes nothing. HF_TOKEN has to be of an account that may write there.
    """
    where = gsae_ray.push(experiment, repo, site, launch, tracking_uri, tokens, private, base_model, license, dry_run)
    click.echo(f"written to {where}; nothing was uploaded" if dry_run else f"pushed to {where}")
