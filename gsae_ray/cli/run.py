"""`gsae-ray run`."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import gsae_ray
from gsae_ray.cli.options import (
    SchemaCommand,
    one_line_errors,
    resume_option,
    set_option,
    storage_option,
    tracking_option,
)
from gsae_ray.cli.verbose import STDERR, verbose_option
from gsae_ray.errors import FAILED, INTERRUPTED, UserError
from gsae_ray.names import own_command
from gsae_ray.results.report import REPORT

if TYPE_CHECKING:
    from gsae_ray.driver.sweep_result import SweepResult
    from gsae_ray.storage.launch_directory import Resume

_EXIT_CODES = """
Exit codes, for what starts a command again when it has ended (Kubernetes, Slurm, SkyPilot; with --resume auto):

  0   every SAE is done
  2   refused, with a line that says what to mend
  3   some SAEs have failed for good: --resume auto leaves them so, --resume tries them again
  75  interrupted (SIGTERM, Ctrl-C, `gsae-ray stop`, storage is full, no room on the cluster): start it again
  Any other is a crash: start it again.
"""


@click.command(cls=SchemaCommand, epilog=_EXIT_CODES)
@click.argument("sweep", type=click.Path(path_type=Path))
@set_option
@click.option(
    "--address",
    metavar="A",
    help="a Ray cluster (its nodes must share --storage); default: RAY_ADDRESS, or a local one for this sweep",
)
@tracking_option
@storage_option
@resume_option
@verbose_option
@one_line_errors
def run(
    sweep: Path,
    overrides: tuple[str, ...],
    address: str | None,
    tracking_uri: str | None,
    storage: str | None,
    resume: Resume,
) -> None:
    """Trains and evaluates every SAE of a sweep file.

    Trials that are done already, in this storage and under the same settings, are not trained again: a new value in a
    list costs only its own trials.
    """
    from gsae_ray.cli.frontier_table import print_frontier
    from gsae_ray.cli.tables import console
    from gsae_ray.driver.launch import describe_end
    from gsae_ray.results.best import example_constraint

    # Until producers are started, SIGTERM ends the command as Ctrl-C does; after that the launch has trials save first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = gsae_ray.run(
            sweep,
            overrides=overrides,
            address=address,
            tracking_uri=tracking_uri,
            storage=storage,
            resume=resume,
            console=STDERR,
        )
    except KeyboardInterrupt:
        click.echo(
            "\ngsae-ray: stopped. Finished trials and checkpoints are kept: the same command goes on from there; with "
            "--resume as the same launch.",
            err=True,
        )
        sys.exit(INTERRUPTED)
    click.echo(describe_end(result))
    if (picture := result.picture) is not None:
        try:
            rows = result.frontier()
        except UserError:  # MLflow does not answer any more; storage tells the same
            result = dataclasses.replace(result, mirrored=False)
            rows = result.frontier()
        print_frontier(rows, console())
        # The address is whole, not redacted: these lines are commands to be run.
        uri = [] if tracking_uri is None else ["--tracking-uri", result.tracking_uri]
        best = ["best", result.experiment, *example_constraint(rows), "--out", "best_sae"]
        click.echo(f"picture:   {_relative(picture)}")
        if (page := picture.with_name(REPORT)).exists():
            click.echo(f"report:    {_relative(page)}")
        if result.mirrored:
            for look in _looks(result, uri):
                click.echo(look)
            click.echo(f"best SAE:  {own_command(*best, *uri)}")
        else:
            click.echo(f"again:     {own_command('frontier', result.experiment, '--storage', result.storage)}")
    for trial, reason in result.failures.items():  # last: `status` shows how a job's output ends
        click.echo(f"failed: {trial}: {reason}", err=True)
    if result.failures:
        sys.exit(FAILED)


def _looks(result: SweepResult, uri: list[str]) -> list[str]:
    """Lines on where MLflow shows the launch: pages of a server, else the command that starts one."""
    from gsae_ray.tracking.runs import RecordedExperiment

    try:
        pages = RecordedExperiment(result.tracking_uri, result.experiment).pages(result.launch_id)
    except UserError:  # it does not answer any more
        pages = None
    if pages is None:
        return [f"look:      {own_command('ui', *uri)}"]
    trials, launch = pages
    return [f"trials:    {trials}", f"launch:    {launch}"]


def _relative(path: Path) -> Path:
    """The path as seen from the working directory, where it is below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
