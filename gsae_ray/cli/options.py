"""What commands share: options, the sweep file's schema in --help, and errors in one line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import resources
from typing import Any

import click

from gsae_ray.errors import INTERRUPTED, REFUSED, SweepStoppedError, UserError
from gsae_ray.jobs import defaults

tracking_option = click.option(
    "--tracking-uri", metavar="U", help="MLflow; default: MLFLOW_TRACKING_URI, or ./mlflow.db"
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="override a key: path.to.key=value, list items by index",
)
_NEWEST = "newest"
resume_option = click.option(
    "--resume",
    metavar="[auto]",
    type=click.Choice([_NEWEST, "auto"]),
    callback=lambda _ctx, _option, value: value if value == "auto" else value is not None,
    help="go on with the newest launch of this sweep, and the --set that it was begun with, instead of beginning "
    "another; auto: with the newest that is not finished, where there is one and the sweep is the same",
)
storage_option = click.option("--storage", metavar="PATH", help="where trials keep their state; default: ./gsae_runs")
read_storage_option = click.option(
    "--storage", metavar="PATH", help="read the storage in MLflow's place: it holds the truth"
)
site_option = click.option("--site", metavar="S", help="only this site, e.g. blocks.2.hook_resid_post")
launch_option = click.option("--launch", metavar="ID", help="a launch's id, or 'all'; default: the newest")
tokens_option = click.option(
    "--tokens",
    metavar="N",
    help="only SAEs trained on N tokens, or 'all': those of any number together, both with snapshots "
    "(training.snapshots_at); default: a frontier for each number, without",
)
dashboard_option = click.option(
    "--address",
    metavar="URL",
    help=f"the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, or {defaults.DASHBOARD} (a tunnel's end)",
)


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Has a command print errors that a user can mend as one line, and exit with the code that belongs to them."""

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


class SchemaCommand(click.Command):
    """A command whose --help ends with the sweep file's schema."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Lets `--resume` stand alone, also before the sweep file, which click would take for its value."""
        alone = [arg == "--resume" and args[i + 1 : i + 2] != ["auto"] for i, arg in enumerate(args)]
        return super().parse_args(ctx, [f"{a}={_NEWEST}" if lone else a for a, lone in zip(args, alone, strict=True)])

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the command's own epilog, then the schema, without click's wrapping of lines."""
        keys = resources.files("gsae_ray.config").joinpath("sweep_keys.txt").read_text("utf-8")
        formatter.write("".join(f"  {line}\n" if line else "\n" for line in (self.epilog or "").splitlines()))
        formatter.write("\nThe sweep file (YAML; [default]; [auto]: leave it out, or null; a list is a grid):\n\n")
        formatter.write("".join(f"  {line}\n" for line in keys.splitlines()))
        formatter.write(
            "\n  A grid may also be {log_range: [1, 16], n: 5} or {log_uniform: [1, 16], n: 8, seed: 0}.\n"
            "\nExample: gsae-ray run sweeps/quickstart.yaml --set 'saes.0.l1_coefficient=[1,2]'\n"
        )
