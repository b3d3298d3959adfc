"""What a launch waits for: nodes, room on them, producers and their rows."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from faults import Home, on_nodes, processes, wait_until
from golden import ONE_PRODUCER, SWEEP, full_store, occupied, process, run
from mlflow.tracking import MlflowClient
from mlflow_stores import new_store
from ray.actor import ActorHandle
from stores import NORMS

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.activations.store import Wait
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import cluster_nodes, start_actors, tune_callbacks
from gsae_ray.driver.start_actors import start_store
from gsae_ray.errors import ProductionError, ReplacedError, StopAskedError, SweepStoppedError, UserError
from gsae_ray.files import write_atomically
from gsae_ray.tracking import session
from gsae_ray.tracking.tags import KIND, PROGRESS

pytestmark = pytest.mark.slow
LAUNCHED = """
head_node_type: head
available_node_types: {head: {resources: {CPU: 2}}, trainer: {resources: {CPU: 8}, labels: {gsae-role: trainer}}}
"""


@pytest.mark.usefixtures("local_ray")
def test_a_launchers_file_is_of_the_cluster_that_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray of its own on the head of another would else wait for nodes that never come."""
    (tmp_path / cluster_nodes.LAUNCHER_FILE).write_text(LAUNCHED)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(cluster_nodes.nodes()) == 1 and cluster_nodes.selector("trainer") == {}


def test_nodes_that_a_launcher_may_start_are_counted(tmp_path: Path) -> None:
    """In a process of its own, with a node that is the launcher's head."""
    (tmp_path / cluster_nodes.LAUNCHER_FILE).write_text(LAUNCHED)
    look = """
import ray
from gsae_ray.driver import cluster_nodes
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print([(node.kind, node.to_come) for node in cluster_nodes.nodes()], cluster_nodes.selector("trainer"))
"""
    environment = os.environ | {"HOME": str(tmp_path), "RAY_NODE_TYPE_NAME": "head"}
    done = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, timeout=200)
    found = "[('head', False), ('trainer', True), ('trainer', True)] {'gsae-role': 'trainer'}"
    assert done.stdout.strip() == found, done.stdout + done.stderr


@pytest.mark.usefixtures("local_ray")
def test_producers_wait_for_room_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_actors, "TELL_AFTER_S", 0.5)
    with occupied(num_cpus=2) as other:
        producer = process(num_cpus=2)
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            ray.kill(other)

        looks: list[None] = []
        start_actors._wait_for_processes([producer], 0, say, lambda: looks.append(None))
        (line,) = said
        assert line.startswith("1 of 1 producers wait for room on the cluster: 0 of 2 CPUs, 1 of 1 GPUs, ")
        assert looks, "it was checked meanwhile"
        ray.kill(producer)


OTHER = """
import sys, time, ray
told = {"gsae.sweep": "theirs", "job_submission_id": "theirs-1"}
ray.init(sys.argv[1], job_config=ray.job_config.JobConfig(metadata=told), log_to_driver=False)
holds = ray.remote(lambda: time.sleep(600)).options(num_cpus=1.5).remote()
while ray.available_resources().get("CPU", 0) > 0.5:
    time.sleep(0.1)
print("holds it", flush=True)
time.sleep(600)
"""


@pytest.mark.usefixtures("local_ray")
def test_what_holds_the_room_is_said() -> None:
    command = [sys.executable, "-c", OTHER, ray.get_runtime_context().gcs_address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "holds it\n"
            wait_until(lambda: ray.available_resources()["CPU"] == 0.5)
            said = cluster_nodes.describe_free_resources()
        finally:
            other.kill()
    assert said.startswith("0.5 of 2 CPUs, 1 of 1 GPUs, ")
    assert said.endswith(" GiB of memory are free; also on this cluster: sweep theirs (job theirs-1)")


@pytest.mark.usefixtures("local_ray")
def test_producers_that_do_not_load_the_model_in_time_are_told_of() -> None:
    class Loading:
        def ready(self, seconds: float = 60) -> None:
            time.sleep(seconds)

    class Failing:
        def ready(self) -> None:
            raise UserError("no such model")

    slow, failing = (ray.remote(kind).options(num_cpus=0).remote() for kind in (Loading, Failing))
    looks: list[None] = []
    with pytest.raises(ProductionError, match="in producers.timeout_s = 2 s"):
        start_actors._wait_for_models([slow], 2, lambda: looks.append(None))
    assert looks, "it was checked meanwhile"
    with pytest.raises(UserError, match="no such model"), start_actors._explained():
        start_actors._wait_for_models([slow, failing], 60, lambda: None)
    for actor in (slow, failing):
        ray.kill(actor)


@pytest.mark.usefixtures("local_ray")
def test_the_rows_of_a_block_are_counted_while_it_is_made(tmp_path: Path) -> None:
    statistics = SiteStatistics(np.zeros(3, np.float32), 2.5, NORMS)

    class Slow:
        def produce(self, block: int, sites: list[str], store: ActorHandle[Any]) -> list[Any]:
            ray.get(store.call.remote("made", block, 5))
            while not (tmp_path / "go on").exists():
                time.sleep(0.05)
            return [dict.fromkeys(sites, statistics), b""]

    store = start_store(Layout((8,), {"site": 3}, "float32", 2**20), 2**20, 60)
    producer = ray.remote(Slow).options(num_cpus=0).remote()
    ray.get(store.begin.remote([producer], {"t": ReaderSpec("site", 8)}, None))
    answer = store.call.remote("attach", "t", 1)
    wait_until(lambda: ray.get(store.report.remote()).waits == (Wait("t", 0, "5 of its 8 rows are made"),))
    (tmp_path / "go on").touch()
    assert ray.get(answer, timeout=60)["site"].mean_square_norm == 2.5
    assert ray.get(store.report.remote()).waits == ()
    for actor in (producer, store):
        ray.kill(actor)


@pytest.mark.skipif(os.geteuid() != 0, reason="a node with a mount of its own needs root")
def test_a_node_that_does_not_see_the_storage_is_told_of(tmp_path: Path) -> None:
    """Before anything starts; and when it comes later and gets a trial."""
    said = on_nodes("node_storage.py", Home(tmp_path))
    assert f"does not see {tmp_path / 'runs' / 'faults'}; every node of a cluster must see it" in said
    assert "is not there on node" in said and "every node of the cluster must see --storage at the same path" in said


def test_producers_wait_for_a_node_though_theirs_dies(tmp_path: Path) -> None:
    said = on_nodes("node_waiting.py", Home(tmp_path))
    assert re.search(r"\n\['1 of 1 producers wait for room on the cluster, with 1 GPUs each: .* are free'\] 2\n", said)


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_that_waits_for_room_is_seen_and_can_be_stopped(tmp_path: Path) -> None:
    """By SIGTERM, which `gsae-ray stop` has the cluster send."""
    client = MlflowClient(new_store(tmp_path))
    experiment = client.create_experiment(SWEEP["name"])

    def reported() -> Any:
        runs = client.search_runs([experiment], f"tags.`{KIND}` = 'launch'")
        return runs and PROGRESS in runs[0].data.tags and runs[0]

    def stop() -> dict[str, Any]:
        run = wait_until(reported, 100, 0.5)
        progress: dict[str, Any] = json.loads(run.data.tags[PROGRESS])
        os.kill(os.getpid(), signal.SIGTERM)
        return progress

    with occupied(num_gpus=1), ThreadPoolExecutor() as pool:
        stopping = pool.submit(stop)
        with pytest.raises(StopAskedError):
            run({**SWEEP, "producers": {"gpus": 1}}, tmp_path)
    progress = stopping.result()
    assert progress["trials"] == {"waiting": 4, "running": 0, "evaluating": 0, "done": 0, "failed": 0}
    assert (progress["tokens_per_s"], progress["seconds_left"]) == (0, None)
    assert client.search_runs([experiment])[0].info.status == "KILLED"
    with occupied(num_gpus=1):  # nothing holds it any more
        pass


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_that_waits_for_room_sees_that_it_was_replaced(tmp_path: Path) -> None:
    """The launch may be the other's now: its runs are left alone."""
    drivers = tmp_path / "runs" / SWEEP["name"] / "drivers"
    client = MlflowClient(new_store(tmp_path))
    experiment = client.create_experiment(SWEEP["name"])

    def replace() -> None:
        wait_until(lambda: client.search_runs([experiment]), 100, 0.5)
        (own,) = drivers.glob("*.json")
        other = {**json.loads(own.read_text()), "pid": 1, "heartbeat": time.time()}
        write_atomically(drivers / "9.json", json.dumps(other).encode())

    with occupied(num_gpus=1), ThreadPoolExecutor() as pool:
        replacing = pool.submit(replace)
        with pytest.raises(ReplacedError):
            run({**SWEEP, "producers": {"gpus": 1}}, tmp_path)
    replacing.result()
    assert client.search_runs([experiment])[0].info.status == "RUNNING"


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_that_waits_for_room_without_mlflow_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would see it, and it could not be asked to stop."""
    monkeypatch.setattr(session, "OPENING_PAUSE_S", 0.1)
    full_store(tmp_path, "runs")  # it could be written to when the sweep was checked
    with occupied(num_gpus=1), pytest.raises(UserError, match="--tracking-uri: .* cannot be used .*it is full"):
        run({**SWEEP, "producers": {"gpus": 1}}, tmp_path)


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_whose_trials_have_no_room_says_what_is_free_and_gives_back_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them would wait for each other for ever."""
    monkeypatch.setattr(tune_callbacks, "TELL_AFTER_S", 1.0)
    sweep = Sweep.model_validate(ONE_PRODUCER)
    soon = sweep.model_copy(update={"trials": sweep.trials.model_copy(update={"room_timeout_s": 3})})
    with occupied(num_cpus=2), pytest.raises(SweepStoppedError, match="trials.room_timeout_s = 3 s, so what"):
        run(soon, tmp_path)
    (log,) = tmp_path.rglob("events.jsonl")
    assert "ends before it is done: SweepStoppedError: no trial has had room" in log.read_text().splitlines()[-1]
    wait_until(lambda: not processes("ProducerActor"))
    (events,) = tmp_path.glob("runs/golden/launches/*/events.jsonl")
    assert events.read_text().count("no trial runs: 0 of 2 CPUs, 1 of 1 GPUs") == 1
