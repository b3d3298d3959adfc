"""`gsae-ray submit`, `status`, `logs`, `stop` and `list`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import gsae_ray
from gsae_ray.cli.options import SchemaCommand, dashboard_option, one_line_errors, resume_option, set_option
from gsae_ray.errors import INTERRUPTED
from gsae_ray.jobs import defaults
from gsae_ray.names import own_command

if TYPE_CHECKING:
    from gsae_ray.storage.launch_directory import Resume


@click.command(cls=SchemaCommand)
@click.argument("sweep", type=click.Path(path_type=Path))
@set_option
@dashboard_option
@click.option(
    "--tracking-uri",
    metavar="U",
    help="an MLflow server, as this machine and the cluster reach it [MLFLOW_TRACKING_URI]",
)
@click.option(
    "--storage", metavar="PATH", default=defaults.STORAGE, show_default=True, help="a folder that all nodes share"
)
@resume_option
@click.option(
    "--grace",
    "grace_s",
    type=click.IntRange(min=0),
    default=defaults.GRACE_S,
    show_default=True,
    metavar="S",
    help="seconds that `gsae-ray stop` leaves the job to save checkpoints, before it is killed",
)
@one_line_errors
def submit(
    sweep: Path,
    overrides: tuple[str, ...],
    address: str | None,
    tracking_uri: str | None,
    storage: str,
    resume: Resume,
    grace_s: int,
) -> None:
    """Runs a sweep on a Ray cluster, as a job.

    The file is checked here, and shipped with this package. Credentials are not: what the hub (HF_TOKEN) and MLflow
    (MLFLOW_TRACKING_USERNAME, _PASSWORD) want belongs into the environment of the cluster's nodes. Without --resume the
    job is a `run --resume auto`: one that is started again goes on.
    """
    job = gsae_ray.submit(
        sweep,
        address=address,
        overrides=overrides,
        tracking_uri=tracking_uri,
        storage=storage,
        resume=resume or "auto",
        grace_s=grace_s,
    )
    at = () if address is None else ("--address", address)  # whole: these lines are commands to be run
    click.echo(f"job:       {job.id}")
    click.echo(f"MLflow:    {job.trials_link} (experiment {job.experiment})")
    click.echo(f"progress:  {own_command('status', job.id, *at)}")
    click.echo(f"output:    {own_command('logs', '-f', job.id, *at)}")
    click.echo(f"end it:    {own_command('stop', job.id, *at)}")


@click.command()
@click.argument("job", required=False)
@dashboard_option
@click.option("--json", "as_json", is_flag=True, help="print a JSON object")
@one_line_errors
def status(job: str | None, address: str | None, as_json: bool) -> None:
    """Tells how far a submitted sweep is: JOB is its id or the sweep's name; default: the newest."""
    from gsae_ray.driver.display import clock, describe_progress
    from gsae_ray.jobs.job import find

    found = find(job, address).status()
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
        return
    click.echo(f"job:            {found.id}, {found.state}, {clock(found.seconds)}")
    if found.progress is not None:
        click.echo(f"progress:       {describe_progress(found.progress)}")
    if found.forward_ratio is not None:
        click.echo(f"forward ratio:  {found.forward_ratio:.2f}")
    click.echo(f"MLflow:         {found.link}")
    if found.message:
        click.echo(f"it says:        {found.message}")
    if found.state in ("failed", "stopped"):
        what = "go on" if found.launch_id is not None else "again"
        click.echo(f"{what + ':':<16}gsae-ray submit …, as before")


@click.command()
@click.argument("job", required=False)
@dashboard_option
@click.option("--follow", "-f", is_flag=True, help="go on printing until the job ends")
@one_line_errors
def logs(job: str | None, address: str | None, follow: bool) -> None:
    """Prints what a submitted sweep's driver prints: JOB is an id or the sweep's name; default: the newest."""
    from gsae_ray.jobs.job import find

    found = find(job, address)
    if follow:
        for text in found.follow():
            click.echo(text, nl=False)
    else:
        click.echo(found.logs(), nl=False)


@click.command()
@click.argument("job")
@dashboard_option
@one_line_errors
def stop(job: str, address: str | None) -> None:
    """Stops a submitted sweep: JOB is an id, or the sweep's name where only one of that name runs.

    Trials save a checkpoint first; `gsae-ray submit … --resume` goes on.
    """
    from gsae_ray.jobs.job import LIVE, find

    found = find(job, address, running=True)
    state = found.stop(say=click.echo)
    click.echo(f"{found.id}: {state}")
    if state in LIVE:
        click.echo("gsae-ray: it has not ended yet: look again with `gsae-ray status`", err=True)
        sys.exit(INTERRUPTED)


@click.command(name="list")
@dashboard_option
@click.option("--json", "as_json", is_flag=True, help="print a JSON list of objects")
@one_line_errors
def list_jobs(address: str | None, as_json: bool) -> None:
    """Lists the sweeps that were submitted to a cluster, the newest first."""
    from gsae_ray.cli.tables import console, print_table
    from gsae_ray.driver.display import clock
    from gsae_ray.jobs.job import LIVE, overview

    found = overview(address)
    if as_json:
        click.echo(json.dumps([status.to_json() for status in found], indent=2))
        return
    trials = [status.progress.trials if status.progress else {} for status in found]
    columns = {
        "job": [status.id for status in found],
        "sweep": [status.sweep for status in found],
        "state": [status.state for status in found],
        "time": [clock(status.seconds) for status in found],
        "trials done": [f"{of['done']} of {sum(of.values())}" if of else "" for of in trials],
    }
    print_table(columns, console(), texts=("sweep", "state"))
    for message in dict.fromkeys(status.message for status in found if status.state in LIVE and status.message):
        click.echo(message, err=True)
