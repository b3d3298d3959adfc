"""The command line: `gsae-ray …`. Thin: everything it does is in the Python API."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

import gsae_ray
from gsae_ray.errors import FAILED, INTERRUPTED, REFUSED, SweepStoppedError, UserError
from gsae_ray.names import local_path, own_command
from gsae_ray.version import __version__

if TYPE_CHECKING:
    from gsae_ray.capacity.duration import Pace
    from gsae_ray.capacity.forecast import Forecast
    from gsae_ray.capacity.memory import Memory
    from gsae_ray.storage.launch_directory import Resume

_EXIT_CODES = """
Exit codes, for what starts a command again when it has ended (Kubernetes, Slurm, SkyPilot; with --resume auto):

  0   every SAE is done
  2   refused, with a line that says what to mend
  3   some SAEs have failed for good: --resume auto leaves them so, --resume tries them again
  75  interrupted (SIGTERM, Ctrl-C, `gsae-ray stop`, storage is full, no room on the cluster): start it again
  Any other is a crash: start it again.
"""


def _one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            click.echo(f"gsae-ray: {error}", err=True)
            sys.exit(REFUSED)
        except SweepStoppedError as error:
            click.echo(f"gsae-ray: {error}", err=True)
            sys.exit(INTERRUPTED)
        except OSError as error:
            click.echo(f"gsae-ray: {error.filename or 'a file'}: {error.strerror or error}", err=True)
            sys.exit(REFUSED)

    return wrapped


class _SchemaCommand(click.Command):
    """A command whose --help ends with the sweep file's schema."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`--resume` may stand alone, also before the sweep file, which click would take for its value."""
        alone = [arg == "--resume" and args[i + 1 : i + 2] != ["auto"] for i, arg in enumerate(args)]
        return super().parse_args(ctx, [f"{a}={_NEWEST}" if lone else a for a, lone in zip(args, alone, strict=True)])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from gsae_ray.config.load import describe

        formatter.write("".join(f"  {line}\n" if line else "\n" for line in (self.epilog or "").splitlines()))
        formatter.write("\nThe sweep file (YAML; [default]; [auto]: leave it out, or null; a list is a grid):\n\n")
        formatter.write("".join(f"  {line}\n" for line in describe().splitlines()))
        formatter.write(
            "\n  A grid may also be {log_range: [1, 16], n: 5} or {log_uniform: [1, 16], n: 8, seed: 0}.\n"
            "\nExample: gsae-ray run sweeps/quickstart.yaml --set 'saes.0.l1_coefficient=[1,2]'\n"
        )


_tracking_option = click.option(
    "--tracking-uri", metavar="U", help="MLflow; default: MLFLOW_TRACKING_URI, or ./mlflow.db"
)
_set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="override a key: path.to.key=value, list items by index",
)
_NEWEST = "newest"
_resume_option = click.option(
    "--resume",
    metavar="[auto]",
    type=click.Choice([_NEWEST, "auto"]),
    callback=lambda ctx, option, value: value if value == "auto" else value is not None,
    help="go on with the newest launch of this sweep, and the --set that it was begun with, instead of beginning "
    "another; auto: with the newest that is not finished, where there is one and the sweep is the same",
)
_storage_option = click.option("--storage", metavar="PATH", help="where trials keep their state; default: ./gsae_runs")
_site_option = click.option("--site", metavar="S", help="only this site, e.g. blocks.2.hook_resid_post")
_launch_option = click.option("--launch", metavar="ID", help="a launch's id, or 'all'; default: the newest")
_tokens_option = click.option(
    "--tokens",
    metavar="N",
    help="only SAEs trained on N tokens, or 'all': those of any number together; default: a frontier for each number",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Sweeps of sparse autoencoders that share one pass over the language model."""


@main.command(cls=_SchemaCommand, epilog=_EXIT_CODES)
@click.argument("sweep", type=click.Path(path_type=Path))
@_set_option
@click.option(
    "--address",
    metavar="A",
    help="a Ray cluster (its nodes must share --storage); default: RAY_ADDRESS, or a local one for this sweep",
)
@_tracking_option
@_storage_option
@_resume_option
@_one_line_errors
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
    from gsae_ray.driver.launch import describe_end
    from gsae_ray.driver.launch import run as run_sweep
    from gsae_ray.results.frontier import example_constraint
    from gsae_ray.results.tables import print_frontier

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, where there are no trials that could save
    try:
        result = run_sweep(
            sweep, overrides=overrides, address=address, tracking_uri=tracking_uri, storage=storage, resume=resume
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
        except UserError:  # MLflow has gone this moment; storage tells the same
            result = dataclasses.replace(result, mirrored=False)
            rows = result.frontier()
        print_frontier(rows, _console())
        uri = [] if tracking_uri is None else ["--tracking-uri", result.tracking_uri]
        best = ["best", result.experiment, *example_constraint(rows), "--out", "best_sae"]
        click.echo(f"picture:   {_relative(picture)}")
        if result.mirrored:
            click.echo(f"look:      {own_command('ui', *uri)}")
            click.echo(f"best SAE:  {own_command(*best, *uri)}")
        else:
            click.echo(f"again:     {own_command('frontier', result.experiment, '--storage', result.storage)}")
    for trial, reason in result.failures.items():  # last: `status` shows how a job's output ends
        click.echo(f"failed: {trial}: {reason}", err=True)
    if result.failures:
        sys.exit(FAILED)


_address_option = click.option(
    "--address",
    metavar="URL",
    help="the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265 (a tunnel's end)",
)


@main.command(cls=_SchemaCommand)
@click.argument("sweep", type=click.Path(path_type=Path))
@_set_option
@_address_option
@click.option(
    "--tracking-uri",
    metavar="U",
    help="an MLflow server, as this machine and the cluster reach it [MLFLOW_TRACKING_URI]",
)
@click.option(
    "--storage", metavar="PATH", default="~/gsae_runs", show_default=True, help="a folder that all nodes share"
)
@_resume_option
@_one_line_errors
def submit(
    sweep: Path,
    overrides: tuple[str, ...],
    address: str | None,
    tracking_uri: str | None,
    storage: str,
    resume: Resume,
) -> None:
    """Runs a sweep on a Ray cluster, as a job.

    The file is checked here, and shipped with this package. Credentials are not: what the hub (HF_TOKEN) and MLflow
    (MLFLOW_TRACKING_USERNAME, _PASSWORD) want belongs into the environment of the cluster's nodes. Without --resume the
    job is a `run --resume auto`: one that is started again goes on.
    """
    job = gsae_ray.submit(
        sweep, address=address, overrides=overrides, tracking_uri=tracking_uri, storage=storage, resume=resume or "auto"
    )
    at = () if address is None else ("--address", address)
    click.echo(f"job:       {job.id}")
    click.echo(f"MLflow:    {job.tracking_uri} (experiment {job.experiment})")
    click.echo(f"progress:  {own_command('status', job.id, *at)}")
    click.echo(f"output:    {own_command('logs', '-f', job.id, *at)}")
    click.echo(f"end it:    {own_command('stop', job.id, *at)}")


@main.command()
@click.argument("job", required=False)
@_address_option
@click.option("--json", "as_json", is_flag=True, help="an object")
@_one_line_errors
def status(job: str | None, address: str | None, as_json: bool) -> None:
    """Tells how far a submitted sweep is: JOB is its id or the sweep's name; default: the newest."""
    import json

    from gsae_ray.driver.display import clock, describe_progress
    from gsae_ray.jobs import job as cluster

    found = cluster.find(job, address).status()
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


@main.command()
@click.argument("job", required=False)
@_address_option
@click.option("--follow", "-f", is_flag=True, help="until the job ends")
@_one_line_errors
def logs(job: str | None, address: str | None, follow: bool) -> None:
    """Prints what a submitted sweep's driver prints: JOB is an id or the sweep's name; default: the newest."""
    from gsae_ray.jobs import job as cluster

    found = cluster.find(job, address)
    if follow:
        for text in found.follow():
            click.echo(text, nl=False)
    else:
        click.echo(found.logs(), nl=False)


@main.command()
@click.argument("job")
@_address_option
@click.option("--grace", default=60.0, show_default=True, metavar="S", help="seconds for trials to save a checkpoint")
@_one_line_errors
def stop(job: str | None, address: str | None, grace: float) -> None:
    """Stops a submitted sweep: JOB is an id, or the sweep's name where only one of that name runs.

    Trials save a checkpoint first; `gsae-ray submit … --resume` goes on.
    """
    from gsae_ray.jobs import job as cluster

    found = cluster.find(job, address, running=True)
    state = found.stop(grace, say=click.echo)
    click.echo(f"{found.id}: {state}")
    if state in cluster.LIVE:
        click.echo("gsae-ray: it has not ended yet: look again with `gsae-ray status`", err=True)
        sys.exit(INTERRUPTED)


@main.command(name="list")
@_address_option
@click.option("--json", "as_json", is_flag=True, help="a list of objects")
@_one_line_errors
def list_jobs(address: str | None, as_json: bool) -> None:
    """Lists the sweeps that were submitted to a cluster, the newest first."""
    import json

    from gsae_ray.driver.display import clock
    from gsae_ray.jobs import job as cluster
    from gsae_ray.results.tables import print_table

    found = cluster.overview(address)
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
    print_table(columns, _console(), texts=("sweep", "state"))
    for message in dict.fromkeys(status.message for status in found if status.state in cluster.LIVE and status.message):
        click.echo(message, err=True)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _console() -> Console:
    """Pipes and files get whole lines, however long."""
    return Console(width=None if sys.stdout.isatty() else 200)


@main.command(cls=_SchemaCommand)
@click.argument("sweep", type=click.Path(path_type=Path))
@_set_option
@click.option(
    "--address", metavar="URL", help="the dashboard of the cluster that it is to run on; default: this machine"
)
@click.option(
    "--cluster",
    "cluster_file",
    type=click.Path(path_type=Path),
    help="the file of a cluster's launcher (cluster.yaml): the nodes that it may start, beside those at --address",
)
@click.option("--slots", type=click.IntRange(min=1), help="trials at a time; default: as many as there is room for")
@_tracking_option
@_storage_option
@click.option("--json", "as_json", is_flag=True, help="an object")
@_one_line_errors
def plan(
    sweep: Path,
    overrides: tuple[str, ...],
    address: str | None,
    cluster_file: Path | None,
    slots: int | None,
    tracking_uri: str | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Tells what a sweep will cost, before anything runs.

    Trials, waves, rows, forward ratio, FLOPs, parameters, time, memory and disk, from the sweep file and the model's
    configuration alone: no weights, no data. With --address or --cluster, what does not fit there is an error. Nodes
    that are still to be started are in the launcher's file only, the size of the object store at the address only.
    """
    import json

    from gsae_ray.capacity.forecast import forecast
    from gsae_ray.capacity.nodes import Launcher
    from gsae_ray.config.load import load_sweep
    from gsae_ray.tracking.parents import fetch_parents, parent_configs

    root = local_path("gsae_runs" if storage is None else storage, "--storage")
    launcher = None if cluster_file is None else Launcher.read(cluster_file)
    nodes = None
    if address is not None:
        from gsae_ray.jobs.job import nodes as nodes_of

        nodes = nodes_of(address)
    if launcher is not None:
        if nodes is not None and not launcher.started(nodes):
            raise UserError(f"--cluster: no node at {address} is of a type of {cluster_file}: leave one of them out")
        nodes = launcher.at_largest(nodes or ())
    loaded = load_sweep(sweep, overrides)
    parents = parent_configs(fetch_parents(loaded, root / loaded.name / "parents", tracking_uri))
    cost = forecast(loaded, slots, nodes, parents)
    if as_json:
        click.echo(json.dumps(cost.to_json(), indent=2))
        return
    _print_forecast(cost)


def _time(pace: Pace | None) -> str:
    from gsae_ray.driver.display import clock

    if pace is None:
        return "not known without the GPUs that it is to run on: give --address, or a --cluster that names them"
    gpus = f", {pace.gpu_hours:.3g} GPU-hours" if pace.gpu_hours else ""
    beside = f"trials {clock(pace.trials_s)}, beside them the language model {clock(pace.model_s)}"
    return f"about {clock(pace.seconds)} ({beside}){gpus}; assumed: {pace.assumed}"


def _memory(need: Memory) -> str:
    on_gpu = f" and {need.gpu / 2**30:.2f} on the GPU" if need.gpu else ""
    return f"{need.host / 2**30:.2f} GiB{on_gpu}"


def _print_forecast(cost: Forecast) -> None:
    from gsae_ray.capacity.forecast import equal_compute
    from gsae_ray.results.tables import print_table

    columns = {
        "trials": [str(kind.trials) for kind in cost.kinds],
        "architecture": [f"{kind.architecture} {kind.variant}".rstrip() for kind in cost.kinds],
        "objective": [kind.objective for kind in cost.kinds],
        "d in": [f"{kind.d_in:,}" for kind in cost.kinds],
        "d sae": [f"{kind.d_sae:,}" for kind in cost.kinds],
        "parameters": [f"{kind.parameters:,}" for kind in cost.kinds],
        "FLOPs a row": [f"{kind.flops_a_row:,}" for kind in cost.kinds],
    }
    print_table(columns, _console(), texts=("architecture", "objective"))
    phases = f" in {len(cost.phases)} phases ({' + '.join(map(str, cost.phases))})" if len(cost.phases) > 1 else ""
    gib, block = cost.activation_bytes / 2**30, cost.block_bytes / 2**30
    ratio = f" if all is kept, {cost.forward_ratio_without_budget:.2f} if nothing can be"
    ratio = ratio if cost.budget_bytes is None and cost.waves > 1 else ""
    unknown = "all kept if 60 % of the object store holds them, else set producers.budget_gib"
    given = f"{(cost.budget_bytes or 0) / 2**30:.2f} GiB keep {cost.kept_blocks} of {cost.blocks} blocks"
    kept = unknown if cost.budget_bytes is None else given
    lines = [
        f"trials:         {cost.trials}{phases}, {cost.slots} at a time: {cost.waves} wave{'s' * (cost.waves > 1)}",
        f"rows:           {cost.rows:,} of the stream, {gib:.2f} GiB of activations, {block:.2f} GiB a block, {kept}",
        f"forward ratio:  {cost.forward_ratio:.2f}{ratio}",
        f"language model: {cost.model_flops:.3g} FLOPs{' at that ratio' if not ratio else ' if all is kept'}",
        f"evaluations:    {cost.evaluation_flops:.3g} FLOPs of the language model",
        f"SAEs:           {cost.training_flops:.3g} FLOPs",
        f"time:           {_time(cost.pace)}",
        f"memory:         a trial {_memory(cost.trial)}, a producer {_memory(cost.producer)}, the store "
        f"{cost.store_bytes / 2**30:.2f} GiB at most, its activations in Ray's object store",
        f"disk:           {cost.disk_bytes / 2**30:.2f} GiB",
        *equal_compute(cost.kinds),
        *cost.notices,
    ]
    for line in lines:
        click.echo(line)


@main.command()
@click.argument("experiment")
@_site_option
@_launch_option
@_tokens_option
@_tracking_option
@click.option("--storage", metavar="PATH", help="read the storage in MLflow's place: it holds the truth")
@click.option(
    "--encoder",
    default="own",
    show_default=True,
    metavar="E",
    help="own, or pursuit: the decoders with gradient pursuit (evaluation.pursuit_l0), a row for each target L0",
)
@click.option("--json", "as_json", is_flag=True, help="a list of objects, one a row")
@_one_line_errors
def frontier(
    experiment: str,
    site: str | None,
    launch: str | None,
    tokens: str | None,
    tracking_uri: str | None,
    storage: str | None,
    encoder: str,
    as_json: bool,
) -> None:
    """Shows what came out of a sweep: L0 and fidelity of each SAE; a star marks the Pareto frontier."""
    from gsae_ray.results.frontier import MIXED
    from gsae_ray.results.tables import print_frontier

    rows = gsae_ray.frontier(experiment, site, launch, tracking_uri, encoder, tokens, storage)
    if as_json:
        click.echo(rows.to_json(orient="records", indent=2, double_precision=15))
        return
    print_frontier(rows, _console(), mixed_tokens=tokens == MIXED)
    for note in rows.attrs["notes"]:
        click.echo(note, err=True)


@main.command()
@click.argument("experiment")
@_site_option
@click.option("--max-l0", type=float, metavar="L0", help="the highest loss recovered with at most this L0")
@click.option("--min-loss-recovered", type=float, metavar="R", help="the lowest L0 that recovers at least this")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="folder to write the SAE to")
@click.option("--format", "format_", default="gsae", show_default=True, help="file format of the SAE")
@_launch_option
@_tokens_option
@_tracking_option
@_one_line_errors
def best(
    experiment: str,
    site: str | None,
    max_l0: float | None,
    min_loss_recovered: float | None,
    out: Path,
    format_: str,
    launch: str | None,
    tokens: str | None,
    tracking_uri: str | None,
) -> None:
    """Fetches the best SAE of a sweep under one constraint."""
    from gsae_ray.saes.export import check_export

    check_export(out, format_)
    sae = gsae_ray.best(experiment, site, max_l0, min_loss_recovered, launch, tracking_uri, tokens)
    gsae_ray.export(sae, out, format_)
    row = sae.cfg.metadata["frontier"]
    click.echo(f"{row['trial']}: L0 {row['l0']:.2f}, loss recovered {row['loss_recovered']:.4f}, written to {out}")


@main.command()
@_tracking_option
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="port on this machine")
@_one_line_errors
def ui(tracking_uri: str | None, port: int) -> None:
    """Opens the MLflow UI on what `run` recorded (bound to this machine only)."""
    from gsae_ray.tracking.connection import open_tracking, resolve_uri

    uri = resolve_uri(tracking_uri)
    if uri.startswith(("http://", "https://")):
        click.echo(f"this MLflow server has its own UI: {uri}")
        return
    open_tracking(uri)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server's that has just ended is free
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"--port: {port} cannot be had on this machine ({error.strerror}); end what listens there, or give "
                f"another: --port {port + 1 if port < 65535 else port - 1}"
            ) from error
    click.echo(f"MLflow UI on {uri}: http://127.0.0.1:{port} (Ctrl-C ends it)")
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)  # in this process's place: a signal to it ends the server
