"""Seconds from `gsae-ray submit` to the first metric of a trial in MLflow, on a cluster of this machine.

    python tests/benchmarks/first_metric.py --times 5

A real head with its dashboard and a real MLflow server, as the tests have them. The first time the cluster is cold: it
has run no job before; the median is that of the others. A sweep is stopped as soon as it has a metric.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import ray
from mlflow.tracking import MlflowClient

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers import MLflowServer, RayHead

from gsae_ray.jobs.job import find, overview

SWEEP = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
TOKEN = "a-token-of-this-cluster-0123456789"


def once(address: str, client: MlflowClient, storage: Path, number: int) -> float:
    """Prints what took how long; returns the sum."""
    name = f"first-{number}"
    started = time.time()
    command = [sys.executable, "-m", "gsae_ray", "submit", str(SWEEP), "--set", f"name={name}"]
    subprocess.run([*command, "--storage", str(storage)], check=True, capture_output=True)
    submitted = time.time()
    while (experiment := client.get_experiment_by_name(name)) is None:
        time.sleep(0.1)
    while not (runs := [r for r in runs_of(client, experiment.experiment_id) if "train/loss" in r.data.metrics]):
        assert time.time() < started + 300
        time.sleep(0.2)
    there = time.time()
    (job,) = [job for job in overview(address) if job.sweep == name]
    driver = find(job.id, address)._details().start_time / 1000
    (launch,) = runs_of(client, experiment.experiment_id, "launch")
    times = {
        "submit returns": submitted,
        "the driver starts": driver,
        "the launch is in MLflow": launch.info.start_time / 1000,
        "a trial is in MLflow": min(run.info.start_time for run in runs) / 1000,
        "it has a metric": there,
    }
    print(f"{there - started:5.1f} s", {what: round(at - started, 1) for what, at in times.items()}, flush=True)
    find(job.id, address).stop()
    return there - started


def runs_of(client: MlflowClient, experiment_id: str, kind: str = "trial") -> list[mlflow.entities.Run]:
    return list(client.search_runs([experiment_id], f"tags.`gsae.kind` = '{kind}'"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Ray {ray.__version__}, MLflow {mlflow.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer(Path(folder, "mlflow"))
        head = RayHead(Path(folder, "ray"), TOKEN, {"HF_HUB_OFFLINE": "1"})
        os.environ |= {"RAY_API_SERVER_ADDRESS": head.address, "RAY_AUTH_TOKEN": TOKEN}
        os.environ["MLFLOW_TRACKING_URI"] = server.uri
        try:
            found = [once(head.address, MlflowClient(server.uri), Path(folder, "runs"), n) for n in range(times)]
        finally:
            head.stop()
            server.kill()
    warm = found[1:]
    print(f"cold {found[0]:.1f} s, then {min(warm):.1f} to {max(warm):.1f}, median {statistics.median(warm):.1f}")


if __name__ == "__main__":
    main()
