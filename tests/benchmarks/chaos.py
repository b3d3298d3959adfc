"""A sweep while something is killed every few seconds, compared with the quiet run.

Weights bit for bit, metric rows and frontier to the last digit, everything in MLflow once.

    python tests/benchmarks/chaos.py --minutes 20 --seed 0

A cluster of a head and two worker nodes on this machine, a real MLflow server, the real command as driver. Every few
seconds one of these is drawn from the seed: SIGKILL of a trial, a producer, all producers, the store, the driver (then
`--resume`), a worker node (then another joins), the tracking server (then it is started again); SIGSTOP of a trial or a
producer, which nobody wakes; SIGKILL of a trial whose newest checkpoint is truncated. The sweep begins anew in a fresh
folder when it is finished, until the minutes are over. Prints the kills by kind and the differences; exits with 1 if
there are any.

Of `--minutes 20 --seed 0` on 2026-11-27 (2 cores, Python 3.11.7, torch 2.13.0+cpu, ray 2.60.0, mlflow 3.17.2): 20.9
minutes, 5 sweeps of 12 trials, drivers started 11 times, 162 blocks made again, differences: 0. Kills: 38 producer,
31 trial, 29 all producers, 20 store, 14 node, 11 producer stopped, 11 trial with its newest checkpoint truncated,
7 trial stopped, 6 driver, 3 tracking server; 170 in all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

# Read by Ray when it is imported: a dead node is noticed after two seconds and not after twelve.
os.environ |= {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from faults import SWEEP, Home, Outcome, assert_undisturbed, processes, stop
from ray.cluster_utils import Cluster
from servers import MLflowServer

import gsae_ray
from gsae_ray.driver.trial_deaths import DEATHS_WITHOUT_CHECKPOINT
from gsae_ray.errors import INTERRUPTED
from gsae_ray.storage.launch_directory import versions

CHAOS_SWEEP: dict[str, Any] = {
    **SWEEP,
    "saes": [
        {"architecture": "gated", "widths": [256], "l1_coefficient": [2, 4, 8]},
        {"architecture": "standard", "widths": [384], "l1_coefficient": [1, 2, 4]},
    ],
    "training": {**SWEEP["training"], "tokens": 163_840},
    "producers": {"count": 2, "timeout_s": 60},
}
KINDS = {  # and how often each is drawn
    "trial": 6,
    "producer": 4,
    "all producers": 2,
    "store": 3,
    "driver": 2,
    "node": 2,
    "tracking server": 1,
    "trial stopped": 2,
    "producer stopped": 1,
    "checkpoint truncated": 3,
}
REST_S = {"driver": 60.0, "node": 40.0, "tracking server": 60.0}
"""From one of these to the next: a driver takes 15 s to come up again, and the trials with it."""
STORE_BYTES = 300_000_000


class Chaos(threading.Thread):
    """Disturbs a sweep until it is told to stop."""

    def __init__(self, home: Home, server: MLflowServer, rng: random.Random, kills: Counter[str]) -> None:
        super().__init__(daemon=True)
        self.home, self.server, self.rng, self.kills = home, server, rng, kills
        self.driver: subprocess.Popen[str] | None = None
        self.node_wanted = threading.Event()
        """For the main thread, which alone may remove and add nodes."""
        self.over = threading.Event()
        self._last = dict.fromkeys(REST_S, time.monotonic())
        self._struck: dict[str, tuple[int, int]] = {}
        """Trial -> its newest checkpoint when it was struck last, and how often since that was saved."""

    def run(self) -> None:
        while not self.over.wait(self.rng.uniform(2, 6)):
            kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
            # Victims come and go by themselves too.
            with contextlib.suppress(psutil.Error, ProcessLookupError, FileNotFoundError, KeyError, ValueError):
                now = time.monotonic()
                if now - self._last.get(kind, 0) > REST_S.get(kind, 0) and self.strike(kind):
                    self._last[kind] = now
                    self.kills[kind] += 1
                    print(f"{time.strftime('%H:%M:%S')} {kind}", flush=True)

    def strike(self, kind: str) -> bool:
        """Whether there was something to disturb."""
        rng, home = self.rng, self.home
        victims: list[psutil.Process] = []
        number = signal.SIGSTOP if "stopped" in kind else signal.SIGKILL
        if kind == "driver":
            assert self.driver is not None
            victims = [psutil.Process(self.driver.pid)]
        elif kind == "node":
            running = [name for name, directory in home.trials.items() if not directory.ended]
            if sum(self.survives(name) for name in running) < len(running):
                return False
            self.node_wanted.set()
            return True
        elif kind == "tracking server":
            if not self.server.answers():
                return False
            self.server.kill()
            threading.Timer(rng.uniform(1, 20), self.server.start, kwargs={"wait": False}).start()
            return True
        elif kind == "store":
            victims = processes("StoreActor")
        elif "producer" in kind:
            found = processes("ProducerActor")
            victims = found if kind == "all producers" else rng.sample(found, min(1, len(found)))
        elif running := [name for name, directory in home.trials.items() if not directory.ended]:
            trial = rng.choice(running)
            process = psutil.Process(home.pid(trial))
            if not process.cmdline()[0].startswith("ray::") or not self.survives(trial):
                return False
            if kind == "checkpoint truncated":
                states = home.trials[trial].path.glob("checkpoints/*/state.safetensors")
                newest = max(states, key=lambda path: int(path.parent.name))
                process.suspend()
                os.truncate(newest, newest.stat().st_size // 2)
            victims = [process]
        for process in victims:
            process.send_signal(number)
        return bool(victims)

    def survives(self, trial: str) -> bool:
        """Whether a trial may die once more without failing for good (`DEATHS_WITHOUT_CHECKPOINT`)."""
        at = self.home.trials[trial].newest_checkpoint
        before, times = self._struck.get(trial, (-1, 0))
        times = times + 1 if at <= before else 1
        if times >= DEATHS_WITHOUT_CHECKPOINT:
            return False
        self._struck[trial] = max(at, before), times
        return True


def add_worker(cluster: Cluster) -> Any:
    """A node with one slot; again where Ray's own patience with a busy machine ends."""
    while True:
        with contextlib.suppress(Exception):
            return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        print("a node did not come up; once more", flush=True)


def play(
    home: Home, server: MLflowServer, cluster: Cluster, workers: list[Any], chaos: Chaos | None, deadline: float
) -> int:
    """Runs the sweep to its end, resuming it as often as it takes. Returns how often it was started."""
    starts = 0
    while True:
        driver = home.command("--address", cluster.address, "--resume", "auto")
        starts += 1
        if chaos is not None:
            chaos.driver = driver
            if starts == 1:
                chaos.start()
        try:
            while driver.poll() is None:
                time.sleep(0.2)
                if chaos is None:
                    continue
                if chaos.node_wanted.is_set():
                    chaos.node_wanted.clear()
                    cluster.remove_node(workers.pop(chaos.rng.randrange(len(workers))), allow_graceful=False)
                    workers.append(add_worker(cluster))
                if time.monotonic() > deadline:  # the rest in peace
                    chaos.over.set()
        finally:
            stop(driver)
        if driver.returncode == INTERRUPTED:  # a stop that says why, and that it can be resumed
            print(home.said().splitlines()[-1], flush=True)
            assert "--resume" in home.said().splitlines()[-1], home.said()
        if driver.returncode == 0 and "is not up to date" not in home.said():
            return starts
        no_server = driver.returncode == 2 and "does not answer" in home.said()
        if driver.returncode not in (0, INTERRUPTED, -signal.SIGKILL) and not no_server:
            raise RuntimeError(f"the driver ended with {driver.returncode}:\n{home.said()}")
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, kills = random.Random(arguments.seed), Counter[str]()
    report: dict[str, Any] = {"seed": arguments.seed, "sweeps": 0, "starts": 0, "blocks again": 0, "differences": 0}
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    workers = [add_worker(cluster) for _ in range(2)]
    with tempfile.TemporaryDirectory(prefix="gsae-chaos-") as temporary:
        folder = Path(temporary)
        server = MLflowServer(folder / "server")
        try:
            home = Home(folder / "quiet", CHAOS_SWEEP, server.uri)
            play(home, server, cluster, workers, None, 0)
            quiet = Outcome.of(home)
            print(f"quiet: {len(quiet.weights)} SAEs", flush=True)
            started = time.monotonic()
            deadline = started + 60 * arguments.minutes
            while time.monotonic() < deadline:
                sweep = {**CHAOS_SWEEP, "experiment": f"chaos-{report['sweeps']}"}
                home = Home(folder / f"chaos-{report['sweeps']}", sweep, server.uri)
                chaos = Chaos(home, server, rng, kills)
                try:
                    report["starts"] += play(home, server, cluster, workers, chaos, deadline)
                finally:
                    chaos.over.set()
                    chaos.join()
                server.wait()
                report["sweeps"] += 1
                report["blocks again"] += sum(
                    sum(json.loads(path.read_text())["repeated"].values()) for path in home.path.rglob("record.json")
                )
                try:
                    assert_undisturbed(home, quiet)
                except AssertionError as difference:
                    report["differences"] += 1
                    print(f"DIFFERENCE: {difference}\n{home.events}", flush=True)
            report["minutes"] = round((time.monotonic() - started) / 60, 1)
        finally:
            server.kill()
            cluster.shutdown()
    report |= {"kills": dict(kills.most_common()), "all kills": kills.total(), "versions": versions()}
    report |= {"gsae_ray": gsae_ray.__version__, "date": time.strftime("%Y-%m-%d")}
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["differences"] else 0)


if __name__ == "__main__":
    main()
