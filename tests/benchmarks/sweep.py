"""Whole sweeps against the least that they could cost, against SAELens' runner of many SAEs, and against a revision.

    python tests/benchmarks/sweep.py [--trials 1 4 8 16] [--tokens 400_000] [--rounds 3] [--revision REV]
        [--sae-lens] [--environment DIR] [--json FILE]

The quickstart's SAEs on the built-in model: at layer 2 a gated one (1 trial), the gated ones (4), all (8), and at both
layers (16). In a round each takes its turn; given are medians over the rounds, and of ratios within a round.

- `ours`: seconds of `gsae-ray run` in an empty folder, without compiled kernels, from the command to its end: Ray,
  model and MLflow come up, and the frontier is published. `training`: the part from the first row of metrics on.
- `parts`: in one process with one thread, once the model is there: one production of the rows, then a bare `Trainer`
  for each SAE, then an evaluation of each; their sum ÷ cores is what a sweep without any cost of its own would take.
- `revision`: as `ours`, by the code of that git revision, for 16 trials by its own quickstart.
- `sae_lens`: `MultiSAETrainingRunner` of SAELens, in an environment of its own (`neighbours` of tests/environments.py):
  the same model, text, SAEs, batch and tokens, all cores; it evaluates nothing (`sweep_worker.py`).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from environments import neighbours

from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.saes import to_bytes
from gsae_ray.training.trainer import Trainer

TREE = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "sweep_worker.py"
Values = dict[str, Any]
Figures = dict[str, float]


def sweep_of(trials: int, tokens: int, tree: Path) -> Values:
    """The quickstart of a tree, with so many of its trials."""
    values: Values = yaml.safe_load((tree / "sweeps/quickstart.yaml").read_text())
    values["training"] |= {"tokens": tokens, "lr": float(values["training"]["lr"])}
    if trials < 16:
        values["sites"]["layers"] = [2]
    if trials < 8:
        values["saes"] = [entry for entry in values["saes"] if entry["architecture"] == "gated"]
    if trials == 1:
        values["saes"][0]["l1_coefficient"] = [4]
    return values


def ours(values: Values, tree: Path) -> Figures:
    """Seconds of a launch, and from its first row of metrics on."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "sweep.yaml").write_text(yaml.safe_dump(values))
        environment = {**os.environ, "PYTHONPATH": str(tree), "XDG_CACHE_HOME": folder + "/cache"}
        command = [sys.executable, "-m", "gsae_ray", "run", "sweep.yaml"]
        with (home / "log").open("w") as log:
            started = time.perf_counter()
            process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
            first_row: list[float] = []

            def watch() -> None:
                while not first_row and process.poll() is None:
                    rows = home.glob("gsae_runs/*/trials/*/metrics-*.jsonl")
                    if any(path.stat().st_size for path in rows):
                        first_row.append(time.perf_counter())
                    time.sleep(0.05)

            watcher = threading.Thread(target=watch)
            watcher.start()
            code = process.wait()
            ended = time.perf_counter()
            watcher.join()
        if code or not first_row:
            raise SystemExit(f"the launch has failed:\n{(home / 'log').read_text()}")
        return {"seconds": ended - started, "training": ended - first_row[0]}


class _Kept:
    """A producer whose blocks are made once, and kept."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.blocks: dict[int, Any] = {}

    def produce(self, block: int, sites: Any) -> Any:
        statistics_of, chunks = self.blocks[block]
        layout = self.producer.spec.layout
        of_site = iter(chunks)
        found = {site: [next(of_site) for _ in layout.chunks(block, site)] for site in layout.widths}
        return statistics_of, [chunk for site in sites for chunk in found[site]]


def parts(values: Values) -> Figures:
    """Seconds of what a sweep cannot do without, on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Sweep.model_validate(values), Path(folder))
        producer = Producer(producer_spec(prepared))
        kept = _Kept(producer)
        found = {"production": 0.0, "loops": 0.0, "evaluations": 0.0}

        def count(part: str, started: float) -> None:
            found[part] += time.perf_counter() - started

        started = time.perf_counter()
        for block in range(len(prepared.layout.rows)):
            kept.blocks[block] = producer.produce(block, list(prepared.layout.widths))
        count("production", started)
        for trial in prepared.trials:
            reader: Any = LocalBlockReader(kept, trial.site)  # type: ignore[arg-type]
            trainer = Trainer(trial, RowStream(reader, prepared.layout, trial.site))
            started = time.perf_counter()
            while not trainer.done:
                trainer.train_interval()
            count("loops", started)
            task = Evaluate(trial.site, *to_bytes(trainer.finished_sae({})))
            started = time.perf_counter()
            producer.run(task)
            count("evaluations", started)
    return {**found, "seconds": sum(found.values())}


def in_a_process(values: Values) -> Figures:
    """`parts`, in a process of its own."""
    command = [sys.executable, __file__, "--parts", json.dumps(values)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def sae_lens(values: Values, python: Path, threads: int) -> Figures:
    """Seconds of SAELens' runner, with the time to load the model."""
    from gsae_ray.builtin import MODEL_DIR, TEXT_FILES

    outer = ("PYTHONPATH", "VIRTUAL_ENV")
    own = {name: value for name, value in os.environ.items() if name not in outer}
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in (python, WORKER, MODEL_DIR, TEXT_FILES["train"])]
        command = [*paths, str(threads), json.dumps(values)]
        started = time.perf_counter()
        done = subprocess.run(command, check=True, cwd=folder, env=own, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "training": json.loads(done.stdout.splitlines()[-1])["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", choices=[1, 4, 8, 16], default=[1, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--revision", help="of this repository")
    parser.add_argument("--sae-lens", action="store_true")
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "gsae-neighbours")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--parts", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.parts:
        print(json.dumps(parts(json.loads(args.parts))))
        return
    cores = os.cpu_count() or 1
    results: dict[int, list[dict[str, Figures]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        revision = Path(folder) / "revision"
        if args.revision:
            subprocess.run(["git", "clone", "-q", str(TREE), str(revision)], check=True)
            subprocess.run(["git", "-C", str(revision), "checkout", "-q", args.revision], check=True)
        python = neighbours(args.environment) if args.sae_lens else None
        for trials in args.trials:
            values = sweep_of(trials, args.tokens, TREE)
            for _ in range(args.rounds):
                figures = {"ours": ours(values, TREE), "parts": in_a_process(copy.deepcopy(values))}
                if args.revision:
                    figures["revision"] = ours(sweep_of(trials, args.tokens, revision), revision)
                if python:
                    figures["sae_lens"] = sae_lens(values, python, cores)
                results.setdefault(trials, []).append(figures)
                print(trials, json.dumps(figures), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))
    print(f"torch {torch.__version__}, {cores} cores, {args.tokens:,} tokens, medians of {args.rounds}")
    for trials, rounds in results.items():
        print(f"{trials} trials:")
        for name in rounds[0]:
            for part in rounds[0][name]:
                print(f"  {name} {part}: {statistics.median(found[name][part] for found in rounds):.1f} s")
        for part in ("seconds", "training"):
            ratio = statistics.median(found["ours"][part] / (found["parts"]["seconds"] / cores) for found in rounds)
            print(f"  ours {part} ÷ (parts ÷ cores): {ratio:.2f}")
        for other in ("revision", "sae_lens"):
            if other in rounds[0]:
                ratio = statistics.median(found["ours"]["seconds"] / found[other]["seconds"] for found in rounds)
                print(f"  ours ÷ {other}: {ratio:.2f}")


if __name__ == "__main__":
    main()
