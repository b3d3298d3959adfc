"""The command line: `gsae-ray …`. Thin: everything that it does is in the Python API."""

from __future__ import annotations

import atexit
import gc

import click

from gsae_ray.cli.bench import bench
from gsae_ray.cli.collect import collect
from gsae_ray.cli.compare import compare
from gsae_ray.cli.evaluate import evaluate
from gsae_ray.cli.features import features
from gsae_ray.cli.jobs import list_jobs, logs, status, stop, submit
from gsae_ray.cli.plan import plan
from gsae_ray.cli.push import push
from gsae_ray.cli.rate import rate
from gsae_ray.cli.report import plot, report
from gsae_ray.cli.results import best, export, frontier
from gsae_ray.cli.run import run
from gsae_ray.cli.study import study
from gsae_ray.cli.ui import ui
from gsae_ray.cli.verbose import verbose_option
from gsae_ray.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@verbose_option
def main() -> None:
    """Sweeps of sparse autoencoders that share one pass over the language model."""
    gc.set_threshold(50_000, 20, 50)  # commands import large packages, as workers do: see gsae_ray/actors/__init__.py
    atexit.register(gc.freeze)  # Python would look through all of their objects once more as it ends: 0.4 to 0.7 s


_COMMANDS = (
    *(run, plan, submit, status, logs, stop, list_jobs),
    *(frontier, compare, report, plot, best, evaluate, export, push, collect, features, study, rate, ui, bench),
)
for command in _COMMANDS:
    main.add_command(command)
