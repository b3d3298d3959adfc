"""Launches that are interrupted where nothing trains: while MLflow is opened, and while actors are shut down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from faults import processes, wait_until
from golden import SHORT, run
from mlflow.tracking import MlflowClient

from gsae_ray.driver import launch
from gsae_ray.driver.publish import open_mirror
from gsae_ray.driver.supervisor import Supervisor
from gsae_ray.driver.trials import TrialRunner
from gsae_ray.errors import StopAskedError
from gsae_ray.tracking.session import Tracking


def statuses(home: Path) -> list[str]:
    """Returns those of the sweep's runs in MLflow."""
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name(SHORT["name"])
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_sigterm_ends_the_wait_for_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shut_down = threading.Event()
    start_mirroring, finish = Tracking.start_mirroring, Supervisor.finish

    def hang(*args: Any) -> Any:
        assert shut_down.wait(100), "the launch waits for MLflow"
        return open_mirror(*args)

    def interrupted(self: Tracking, *args: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        start_mirroring(self, *args)

    def tell(self: Supervisor) -> None:
        shut_down.set()
        finish(self)

    monkeypatch.setattr(launch, "open_mirror", hang)
    monkeypatch.setattr(Tracking, "start_mirroring", interrupted)
    monkeypatch.setattr(Supervisor, "finish", tell)
    with pytest.raises(StopAskedError):
        run(SHORT, tmp_path)
    assert statuses(tmp_path) == ["KILLED"]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_sigterm_interrupts_the_shutdown_of_actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may wait for a store that gives no answer; nothing would see that somebody has asked to stop."""
    monkeypatch.setattr(TrialRunner, "run", lambda _: None)
    finish = Supervisor.finish

    def interrupted(self: Supervisor) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            finish(self)  # else its thread would ask Ray on, which begins another for it

    monkeypatch.setattr(Supervisor, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(SHORT, tmp_path)
    assert statuses(tmp_path) == ["KILLED"]
    wait_until(lambda: not processes("StoreActor"))


NOTEBOOK = """
import json, signal, sys
from gsae_ray import Sweep, run
from rich.console import Console

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
sys.ps1 = ">>> "  # what makes Python interactive
sweep, home = Sweep.model_validate(json.loads(sys.argv[1])), sys.argv[2]
where = {"storage": f"{home}/runs", "tracking_uri": f"sqlite:///{home}/mlflow.db", "console": Console(quiet=True)}
result = run(sweep, **where)
print(result.interrupted, len(result.frontier()), repr(result).count("resume=True"))
again = run(sweep, resume=True, **where)
print(again.interrupted, len(again.frontier()), again.launch_id == result.launch_id, again.mirrored)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_a_notebook_an_interrupt_returns_what_was_finished_and_resume_goes_on(tmp_path: Path) -> None:
    """A real process, interrupted when one of its SAEs is evaluated and another trains."""
    sweep = {**SHORT, "training": {**SHORT["training"], "tokens": 80_000, "checkpoint_every_tokens": 20_480}}
    arguments = [sys.executable, "-c", NOTEBOOK, json.dumps(sweep), str(tmp_path)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(arguments, start_new_session=True, **pipes)
    trials = tmp_path / "runs/golden/trials"

    def is_halfway() -> bool:
        assert running.poll() is None, running.communicate()[1]
        return bool(list(trials.glob("*/evaluations/*.json")) and list(trials.glob("*/metrics-*.jsonl")))

    wait_until(is_halfway)
    time.sleep(1)
    os.kill(running.pid, signal.SIGINT)
    output, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors
    first, second = output.splitlines()[-2:]
    interrupted, finished, told = first.split()
    assert interrupted == "True" and 1 <= int(finished) < 4 and told == "1", output
    assert second.split() == ["False", "4", "True", "True"], output
