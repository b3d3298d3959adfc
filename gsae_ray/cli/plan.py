"""`gsae-ray plan`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gsae_ray.cli.options import SchemaCommand, one_line_errors, set_option, storage_option, tracking_option
from gsae_ray.errors import UserError
from gsae_ray.names import local_path


@click.command(cls=SchemaCommand)
@click.argument("sweep", type=click.Path(path_type=Path))
@set_option
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
@tracking_option
@storage_option
@click.option("--json", "as_json", is_flag=True, help="print a JSON object")
@one_line_errors
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
    configuration alone: no weights, no data but the labelled data sets of probes. With --address or --cluster, what
    does not fit there is an error. Nodes that are still to be started are in the launcher's file only, the size of the
    object store at the address only.
    """
    from gsae_ray.capacity.forecast import forecast
    from gsae_ray.capacity.nodes import Launcher
    from gsae_ray.cli.forecast_table import print_forecast
    from gsae_ray.config.load import load_sweep
    from gsae_ray.tracking.credentials import redacted
    from gsae_ray.tracking.parents import fetch_parents, parent_configs

    root = local_path("gsae_runs" if storage is None else storage, "--storage")
    launcher = None if cluster_file is None else Launcher.read(cluster_file)
    nodes = None
    if address is not None:
        from gsae_ray.jobs.dashboard import nodes as nodes_of

        nodes = nodes_of(address)
        if launcher is not None and not launcher.started(nodes):
            raise UserError(
                f"--cluster: no node at {redacted(address)} is of a type of {cluster_file}: leave one of them out"
            )
    if launcher is not None:
        nodes = launcher.at_largest(nodes or ())
    loaded = load_sweep(sweep, overrides)
    parents = parent_configs(fetch_parents(loaded, root / loaded.name / "parents", tracking_uri))
    cost = forecast(loaded, slots, nodes, parents)
    if as_json:
        click.echo(json.dumps(cost.to_json(), indent=2))
        return
    print_forecast(cost)
