"""`gsae-ray ui`."""

from __future__ import annotations

import os
import socket
import sys

import click

from gsae_ray.cli.options import one_line_errors, tracking_option
from gsae_ray.errors import UserError


@click.command()
@tracking_option
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="port on this machine")
@one_line_errors
def ui(tracking_uri: str | None, port: int) -> None:
    """Opens the MLflow UI on what `run` recorded (bound to this machine only)."""
    from gsae_ray.tracking.connection import resolve_uri
    from gsae_ray.tracking.credentials import redacted
    from gsae_ray.tracking.pages import experiment_pages
    from gsae_ray.tracking.runs import recorded_experiments

    uri = resolve_uri(tracking_uri)
    recorded = recorded_experiments(uri)
    if uri.startswith(("http://", "https://")):
        click.echo(f"this MLflow server has its own UI: {redacted(uri)}")
        for page in experiment_pages(uri, recorded):
            click.echo(page)
        return
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server's that has just ended is free
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"--port: {port} cannot be had on this machine ({error.strerror}); end what listens there, or give "
                f"another: --port {port + 1 if port < 65535 else port - 1}"
            ) from error
    click.echo(f"MLflow UI on {redacted(uri)}: http://127.0.0.1:{port} (Ctrl-C ends it)")
    for page in experiment_pages(f"http://127.0.0.1:{port}", recorded):
        click.echo(page)
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)  # in this process's place: a signal to it ends the server
