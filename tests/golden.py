"""The sweep that the tests of launches share, and what they do with it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from mlflow.tracking import MlflowClient
from mlflow_stores import new_store
from ray.actor import ActorHandle
from rich.console import Console

from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import launch

SWEEP: dict[str, Any] = {  # with both engines: the laws, and what is killed, hold with each
    "name": "golden",
    "model": {"name": "builtin"},
    "dataset": {"name": "builtin", "shuffle_tokens": 16_384},
    "sites": {"layers": [1, 2], "points": ["resid_post"]},
    "saes": [
        {"architecture": "gated", "widths": [256], "l1_coefficient": [4], "engine": "sparse-cpu"},
        {"architecture": "standard", "widths": [384], "l1_coefficient": [2]},
    ],
    "training": {"tokens": 80_000, "batch_size": 128, "lr": 1e-3},
    "evaluation": {"tokens": 8192},
    "producers": {"count": 2},
}
ONE_PRODUCER = {**SWEEP, "producers": {"count": 1}}  # the same trials; one process less to start
SHORT = {
    **ONE_PRODUCER,
    "saes": [{key: value for key, value in entry.items() if key != "engine"} for entry in SWEEP["saes"]],
    "training": {**SWEEP["training"], "tokens": 24_000, "log_every_tokens": 2_560},
    "evaluation": {"tokens": 2048},
    "trials": {"max_concurrent": 1},
}
"""Two blocks of tokens in place of five, one process for all trials: for tests that look at what a launch does, not at
how good its SAEs are."""


def run(sweep: dict[str, Any] | Sweep, home: Path, **options: Any) -> launch.SweepResult:
    uri, quiet = new_store(home), Console(quiet=True)
    return launch.run(Sweep.model_validate(sweep), storage=home / "runs", tracking_uri=uri, console=quiet, **options)


def parent_run(result: launch.SweepResult) -> Any:
    client = MlflowClient(result.tracking_uri)
    experiment = client.get_experiment_by_name(result.experiment)
    query = f"tags.`gsae.launch` = '{result.launch_id}' and tags.`gsae.kind` = 'launch'"
    return client.search_runs([experiment.experiment_id], query)[0]


def process(**resources: float) -> ActorHandle[Any]:
    """One of somebody else, that holds what a sweep needs."""

    class Process:
        pass

    return ray.remote(Process).options(**resources).remote()


@contextlib.contextmanager
def occupied(**resources: float) -> Iterator[ActorHandle[Any]]:
    """Somebody else holds these resources, for the length of the context."""
    other = process(**resources)
    ray.get(other.__ray_ready__.remote())
    try:
        yield other
    finally:
        ray.kill(other)


def full_store(home: Path, full: str) -> str:
    """An MLflow store of which one table takes no rows."""
    uri = new_store(home)
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database:
        refuse = f"CREATE TRIGGER full BEFORE INSERT ON {full} BEGIN SELECT RAISE(ABORT, 'it is full'); END"
        database.execute(refuse)
    return uri
