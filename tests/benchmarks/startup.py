"""How long a launch takes to its first training step, and what commands cost before they do anything.

    python tests/benchmarks/startup.py [--runs 3] [--verbose]

The quickstart, in an empty folder with an empty cache of compiled kernels, until a trial has written its first row of
metrics (a hundred steps, about 0.2 s), and again where tokens, kernels and MLflow's database are there; then it is
ended. CPU seconds of `--help`, `frontier` and `best` are medians, and what importing MLflow's client takes is beside
them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

QUICKSTART = Path(__file__).parents[2] / "sweeps/quickstart.yaml"
COMMAND = [sys.executable, "-m", "gsae_ray"]
TIMEOUT_S = 300
SITE = "blocks.1.hook_resid_post"


def to_first_row(home: Path, verbose: bool) -> float:
    """Seconds from the command to the first row of metrics of a new launch."""
    storage = home / "gsae_runs"
    command = [*COMMAND, *(["-v"] if verbose else []), "run", str(QUICKSTART)]
    # Other trials than those of the run before, so that all begin at their first step.
    command += ["--set", f"training.seeds=[{time.time_ns() % 2**31}]"]
    known = set(storage.glob("*/trials/*"))
    started = time.perf_counter()
    with (home / "log").open("w") as log:
        environment = {**os.environ, "XDG_CACHE_HOME": str(home / "cache")}
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
    lines = 0
    try:
        while True:
            found = set(storage.glob("*/trials/*")) - known
            if any(path.stat().st_size for trial in found for path in trial.glob("metrics-*.jsonl")):
                return time.perf_counter() - started
            if process.poll() is not None or time.perf_counter() - started > TIMEOUT_S:
                raise SystemExit(f"the launch has not come to a step:\n{(home / 'log').read_text()}")
            if verbose:
                said = (home / "log").read_text().splitlines()
                for line in said[lines:]:
                    print(f"  {time.perf_counter() - started:5.1f} s  {line}")
                lines = len(said)
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(120)


def cpu_seconds(command: Sequence[str], cwd: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def median(measure: Callable[[], float], runs: int) -> float:
    return statistics.median(measure() for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--verbose", action="store_true", help="print when the launch says what")
    args = parser.parse_args()
    fresh, again = [], []
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            fresh.append(to_first_row(Path(folder), args.verbose))
            again.append(to_first_row(Path(folder), args.verbose))
    print(f"to the first training step: {statistics.median(fresh):.1f} s; again {statistics.median(again):.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        tiny = ["training.tokens=1280", "evaluation.tokens=1024", "dataset.shuffle_tokens=2000"]
        tiny += ["saes=[{architecture: standard, widths: 64, l1_coefficient: [1, 2]}]", "training.engine=dense"]
        changes = [part for change in tiny for part in ("--set", change)]
        subprocess.run([*COMMAND, "run", str(QUICKSTART), *changes], cwd=home, check=True, capture_output=True)
        numbers = itertools.count()
        client = [sys.executable, "-c", "from mlflow import MlflowClient"]
        commands = {
            "importing MLflow's client": client,
            "--help": [*COMMAND, "--help"],
            "run --help": [*COMMAND, "run", "--help"],
            "frontier": [*COMMAND, "frontier", "quickstart"],
            "best": [*COMMAND, "best", "quickstart", "--site", SITE, "--max-l0", "1000", "--out"],
        }
        for name, command in commands.items():

            def once(command: Sequence[str] = command) -> float:
                out = [f"sae-{next(numbers)}"] if command[-1] == "--out" else []
                return cpu_seconds([*command, *out], home)

            once()
            print(f"{name}: {median(once, args.runs):.2f} CPU seconds")


if __name__ == "__main__":
    main()
