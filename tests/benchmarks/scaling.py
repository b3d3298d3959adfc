"""What a training step costs against width, d_in, L0 and batch, and a block of rows against the number of sites.

    python tests/benchmarks/scaling.py [--axis width d_in l0 batch sites] [--engine dense sparse-cpu] [--threads 2]
        [--rounds 3] [--json FILE]

Steps of gated SAEs by the default recipe, from d_in 512, width 4,096, batch 1,024, L0 64 along one axis at a time; the
engines take turns. Against the number of trials: `sweep.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gsae_ray.activations.producer import Producer
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.training.step_time import measure

MIDDLE = {"d_in": 512, "width": 4096, "batch": 1024, "l0": 64}
AXES = {
    "width": [1024, 2048, 4096, 8192, 16_384],
    "d_in": [128, 256, 512, 1024, 2048],
    "l0": [4, 16, 64, 256, 1024],
    "batch": [128, 256, 512, 1024, 2048],
}
SITES = [1, 2, 4, 8]
"""Numbers of sites of the built-in model's first two layers."""


def steps(axis: str, engines: list[str], threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each value of the axis, printed as they come."""
    rows = []
    for value in AXES[axis]:
        at = {**MIDDLE, axis: value}
        row: dict[str, Any] = {axis: value}
        found: dict[str, list[float]] = {engine: [] for engine in engines}
        for _ in range(rounds):
            for engine in engines:
                sizes = at["d_in"], at["width"], at["batch"], at["l0"]
                name: Any = engine
                result = measure("gated", *sizes, engine=name, threads=threads, intervals=1, steps_per_interval=5)
                found[engine].append(result.ms_per_step)
        row |= {engine: statistics.median(times) for engine, times in found.items()}
        rows.append(row)
        print(f"{axis} {value}: " + ", ".join(f"{engine} {row[engine]:.1f} ms" for engine in engines), flush=True)
    return rows


def sites(threads: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of a block of the built-in model at more and more sites, which all end at the same layer."""
    values: dict[str, Any] = {
        "name": "scaling",
        "model": {"name": "builtin"},
        "dataset": {"name": "builtin"},
        "sites": {"layers": [0, 1], "points": ["resid_post", "resid_pre", "attn_out", "mlp_out"]},
        "saes": [{"architecture": "standard", "widths": 8, "l1_coefficient": 1.0}],
        "training": {"tokens": 300_000, "batch_size": 100},
        "evaluation": {"tokens": 1024},
        "producers": {"cpus": threads},
    }
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Sweep.model_validate(values), Path(folder))
        producer = Producer(producer_spec(prepared))
        names = sorted(prepared.layout.widths, key=lambda name: (name != "blocks.1.hook_resid_post", name))
        found: dict[int, list[float]] = {number: [] for number in SITES}
        producer.produce(1, names)
        for _ in range(rounds):
            for number in SITES:
                started = time.perf_counter()
                producer.produce(1, names[:number])
                found[number].append(time.perf_counter() - started)
    rows = [{"sites": number, "seconds": statistics.median(times)} for number, times in found.items()]
    for row in rows:
        print(f"sites {row['sites']}: {row['seconds']:.2f} s a block, {row['seconds'] / rows[0]['seconds']:.2f} of one")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", nargs="+", choices=[*AXES, "sites"], default=[*AXES, "sites"])
    parser.add_argument("--engine", nargs="+", choices=["dense", "sparse-cpu"], default=["dense", "sparse-cpu"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.threads} threads, medians of {args.rounds}; at {MIDDLE}")
    found = {}
    for axis in args.axis:
        if axis == "sites":
            found[axis] = sites(args.threads, args.rounds)
        else:
            found[axis] = steps(axis, args.engine, args.threads, args.rounds)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
