"""A small sweep, what it comes to undisturbed, and ways to disturb it: real signals to real processes of Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import golden
import psutil
import yaml
from mlflow.tracking import MlflowClient
from mlflow_stores import new_store
from ray.cluster_utils import Cluster
from rich.console import Console

from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import launch
from gsae_ray.results.frontier import frontier
from gsae_ray.storage.trial_directory import TrialDirectory

SWEEP: dict[str, Any] = {
    **golden.SWEEP,
    "name": "faults",
    "saes": [  # both engines, and an architecture with counters and a threshold
        golden.SWEEP["saes"][0],
        {"architecture": "batchtopk", "widths": [384], "k": 16, "dead_after_tokens": 10_000},
    ],
    "training": {
        **golden.SWEEP["training"],
        **{"tokens": 81_920, "log_every_tokens": 2_560, "checkpoint_every_tokens": 10_240},
        "snapshots_at": [17_000, 43_000],  # within intervals
    },
    "evaluation": {"tokens": 4096},
    "trials": {"hang_timeout_s": 15},
}
ONE_PRODUCER = {**SWEEP, "producers": {"count": 1}}
"""The same trials: where no producer is disturbed, one process less to start."""
TOKENS = SWEEP["training"]["tokens"]
WALL_CLOCK = {"train/tokens_per_s", "train/step_ms", "train/data_wait_fraction"}
"""Metrics that no two runs share."""
PATIENCE_S = 200.0


def seed() -> int:
    """GSAE_FAULTS_SEED; else 0 in CI, elsewhere another one each time; printed, so that a failure can be had again."""
    value = int(os.environ.get("GSAE_FAULTS_SEED") or (0 if os.environ.get("CI") else time.time_ns() % 10**6))
    print(f"GSAE_FAULTS_SEED={value}")  # noqa: T201
    return value


def wait_until(condition: Callable[[], Any], patience_s: float = PATIENCE_S, interval_s: float = 0.05) -> Any:
    """The first truthy value of `condition`."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} for {patience_s:g} s")
        time.sleep(interval_s)
    return value


# ---- the sweep ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Home:
    """Where a sweep runs: storage and MLflow."""

    path: Path
    sweep: dict[str, Any] = dataclasses.field(default_factory=lambda: SWEEP)
    uri: str = ""

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.storage = self.path / "runs"
        self.uri = self.uri or new_store(self.path)

    def run(self, **options: Any) -> launch.SweepResult:
        """In this process, on the Ray that it has."""
        sweep = Sweep.model_validate(self.sweep)
        console = Console(file=sys.stdout, width=250)
        return launch.run(sweep, storage=self.storage, tracking_uri=self.uri, console=console, **options)

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """The real command, with a Ray of its own, whatever the shell has told it of Ctrl-C."""
        file = self.path / "sweep.yaml"
        file.write_text(yaml.safe_dump(self.sweep))
        own = [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"]
        own[-1] += "from gsae_ray.cli.main import main; main(prog_name='gsae-ray')"
        options = ["--storage", str(self.storage), "--tracking-uri", self.uri]
        output = (self.path / f"output-{time.time_ns()}.txt").open("w")
        return subprocess.Popen(
            [*own, "run", str(file), *options, *arguments], stdout=output, stderr=output, text=True, cwd=self.path
        )

    def said(self, command: int = -1) -> str:
        """What a command has printed; default: the newest."""
        return sorted(self.path.glob("output-*.txt"))[command].read_text()

    @property
    def experiment(self) -> str:
        return self.sweep.get("experiment") or self.sweep["name"]

    @property
    def trials(self) -> dict[str, TrialDirectory]:
        """Directories by the trial's name; only those that have begun."""
        folders = (self.storage / self.sweep["name"] / "trials").glob("*")
        return {folder.name.rpartition("-")[0]: TrialDirectory(folder) for folder in sorted(folders)}

    @property
    def events(self) -> str:
        """What all launches' logs say."""
        logs = (self.storage / self.sweep["name"] / "launches").glob("*/events.jsonl")
        return "".join(log.read_text() for log in logs)

    def tokens(self, trial: str) -> int:
        """How far a trial has come."""
        directory = self.trials.get(trial)
        rows = directory.rows()[0] if directory else []
        return rows[-1]["step"] if rows else 0

    def furthest(self) -> tuple[int, str]:
        """(tokens, name) of the trial that is furthest of those that run."""
        running = [(self.tokens(name), name) for name, directory in self.trials.items() if not directory.ended]
        return max(running, default=(0, ""))

    def pid(self, trial: str) -> int:
        return int(self.trials[trial].newest_begun["pid"])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that a sweep came to, but for what depends on the clock."""

    weights: dict[str, bytes]
    rows: dict[str, list[tuple[int, dict[str, float]]]]
    frontier: list[dict[str, Any]]
    snapshots: dict[str, dict[str, bytes]]
    """Trial -> its snapshots' files."""

    @classmethod
    def of(cls, home: Home) -> Outcome:
        weights, rows, snapshots = {}, {}, {}
        for name, directory in home.trials.items():
            if directory.done:
                weights[name] = (directory.path / "sae" / "sae_weights.safetensors").read_bytes()
                files = (directory.path / "snapshots").glob("*/*")
                snapshots[name] = {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}
                rows[name] = [
                    (row["step"], {k: v for k, v in row["metrics"].items() if k not in WALL_CLOCK})
                    for row in directory.rows()[0]
                ]
        table = frontier(home.experiment, launch="all", tracking_uri=home.uri)
        table = table.drop(columns=["run_id", "launch"]).sort_values("trial")
        records = table.astype(object).where(table.notna(), None).to_dict("records")  # no NaN equals another
        return cls(weights, rows, records, snapshots)


def assert_undisturbed(home: Home, quiet: Outcome, but_for: Sequence[str] = ()) -> None:
    """Weights bit for bit, metric rows and the frontier to the last digit, all of it in MLflow, and there once."""
    found = Outcome.of(home)
    wanted = sorted(set(quiet.weights) - set(but_for))
    assert sorted(found.weights) == wanted
    for name in wanted:
        assert found.weights[name] == quiet.weights[name], f"{name}: other weights"
        assert found.rows[name] == quiet.rows[name], f"{name}: other metric rows"
        assert found.snapshots[name] == quiet.snapshots[name], f"{name}: other snapshots"
    left = [dict(row) for row in quiet.frontier if row["trial"] not in but_for]
    for row in (*found.frontier, *left) if but_for else ():
        row.pop("on_frontier", None)  # it depends on the others
    assert found.frontier == left
    client = MlflowClient(home.uri)
    experiment = client.get_experiment_by_name(home.experiment).experiment_id
    runs = client.search_runs([experiment], "tags.`gsae.kind` = 'trial'")
    assert sorted(run.data.tags["gsae.trial"] for run in runs) == sorted([*wanted, *but_for]), "once each"
    for run in runs:
        name = run.data.tags["gsae.trial"]
        if name in but_for:
            assert run.info.status == "FAILED"
            continue
        assert run.info.status == "FINISHED"
        rows = home.trials[name].rows()[0]
        for key in {key for row in rows for key in row["metrics"]}:
            history = client.get_metric_history(run.info.run_id, key)
            with_key = [row for row in rows if key in row["metrics"]]
            assert [metric.step for metric in history] == [row["step"] for row in with_key], f"{name}: {key}"
            # What a dead attempt sent stays, and its successor came to the same numbers, wall-clock ones aside.
            if key not in WALL_CLOCK:
                values = [row["metrics"][key] for row in with_key]
                assert [metric.value for metric in history] == values, f"{name}: {key}"
        for key in ("eval/l0", "eval/loss_recovered"):
            assert len(client.get_metric_history(run.info.run_id, key)) == 1
        kept = home.trials[name].snapshots.tokens()
        evaluated = client.get_metric_history(run.info.run_id, "snapshot/l0") if kept else []
        assert sorted(metric.step for metric in evaluated) == kept
        saved = {item.path for item in client.list_artifacts(run.info.run_id, "sae")}
        assert saved == {"sae/cfg.json", "sae/sae_weights.safetensors"}
    launches = client.search_runs([experiment], "tags.`gsae.kind` = 'launch'")
    assert [run.info.status for run in launches] == ["FINISHED"]


NODE_STORE_BYTES = 300_000_000
"""The object store of a node of such a cluster."""


def head_without_slots() -> Cluster:
    """A cluster of several nodes on this machine; so far it has the head, on which no trial runs."""
    args = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": NODE_STORE_BYTES}
    return Cluster(initialize_head=True, head_node_args=args)


def add_node(cluster: Cluster, role: str | None = None, cpus: int = 1) -> Any:
    """A node for trials, or for what its role says."""
    labels = {"gsae-role": role} if role else {}
    return cluster.add_node(num_cpus=cpus, object_store_memory=NODE_STORE_BYTES, labels=labels)


def on_nodes(script: str, home: Home, *arguments: str) -> str:
    """What a script says that has a cluster of several nodes, which tells of itself, and notices a dead one, soon."""
    environment = {
        **os.environ,
        **{"RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "500"},
        # Of a dead node the connection is refused at once; one on a loaded machine may take its time.
        **{"RAY_health_check_timeout_ms": "10000", "RAY_health_check_failure_threshold": "3"},
        "RAY_metrics_report_interval_ms": "1000",
    }
    command = [sys.executable, str(Path(__file__).with_name(script)), str(home.path), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- the faults -----------------------------------------------------------------------------------------------------


def processes(kind: str, of: int | None = None) -> list[psutil.Process]:
    """Ray's workers of a kind (`ProducerActor`, `StoreActor`) under a driver; default: this process."""
    found = []
    for process in psutil.Process(of or os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline() and process.cmdline()[0].startswith(f"ray::{kind}"):
                found.append(process)
    return sorted(found, key=lambda p: p.pid)


def send(number: int, found: Sequence[psutil.Process]) -> None:
    """A signal to processes; there must be one."""
    assert found, "no process to disturb"
    for process in found:
        process.send_signal(number)


class Fault(threading.Thread):
    """Strikes once when a trial has come to a position; what goes wrong with it is raised at the end.

    Args:
        home: of the sweep.
        at: part of the training of the first trial that gets there.
        strike: gets that trial's name.
    """

    def __init__(self, home: Home, at: float, strike: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self.home, self.at, self.strike = home, at, strike
        self.error: BaseException | None = None
        self.struck_at: float | None = None

    def run(self) -> None:
        try:
            wait_until(lambda: self.home.furthest()[0] >= self.at * TOKENS)
            _, trial = self.home.furthest()
            self.struck_at = time.monotonic()
            self.strike(trial)
        except BaseException as error:  # noqa: BLE001
            self.error = error


@contextlib.contextmanager
def disturbed(home: Home, at: float, strike: Callable[[str], None]) -> Iterator[Fault]:
    """A fault beside what runs in the context; it must have struck in the end."""
    fault = Fault(home, at, strike)
    fault.start()
    yield fault
    fault.join(PATIENCE_S)
    if fault.error is not None:
        raise fault.error
    assert fault.struck_at is not None, "it was over before"


def position(rng: random.Random) -> float:
    """Where a fault strikes, as a part of a trial's training."""
    at = rng.uniform(0.1, 0.85)
    print(f"at {at:.3f}")  # noqa: T201
    return at


def stop(driver: subprocess.Popen[str]) -> None:
    """Ends a command's process that is still there, and what it has started."""
    with contextlib.suppress(psutil.Error):
        family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
    driver.wait(10)
