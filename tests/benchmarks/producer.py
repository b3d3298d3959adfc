"""Tokens a second of a producer beside those of the bare model, and what further sites cost.

    python tests/benchmarks/producer.py [--layer 2] [--threads 1] [--rounds 5]

A block of the built-in model and text, at one site and at those of its layers up to that one, against forward passes
of the model without hooks, cut off after the same layer, over as many contexts in the same batches; in turn, the
median of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from producers import source_of
from torch import nn

from gsae_ray.activations.producer import Producer
from gsae_ray.config.site import POINTS, Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.language_model.hooks import layers_of
from gsae_ray.language_model.loading import load_model


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    values = {
        "name": "producer",
        "model": {"name": "builtin"},
        "dataset": {"name": "builtin"},
        "sites": {"layers": list(range(args.layer + 1)), "points": list(POINTS)},
        "saes": [{"architecture": "standard", "widths": 8, "l1_coefficient": 1.0}],
        "training": {"tokens": 300_000, "batch_size": 100},
        "evaluation": {"tokens": 1024},
        "producers": {"cpus": args.threads},
    }
    sweep = Sweep.model_validate(values)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(sweep, Path(folder))
        producer = Producer(producer_spec(prepared))
        one = Site.of_point(args.layer, "resid_post").name
        every = list(prepared.layout.widths)
        residual = [Site.of_point(layer, "resid_post").name for layer in range(args.layer + 1)]
        model = load_model(sweep.language_model)
        base: Any = model.base_model
        layers = layers_of(model)
        assert layers is not None
        base.layers = nn.ModuleList(layers[: args.layer + 1])
        tokens_ST = source_of(producer).spec.tokens.block(1)

        @torch.no_grad()
        def bare() -> None:
            for tokens_BT in tokens_ST.split(sweep.producers.batch):
                base(tokens_BT, use_cache=False)

        runs: dict[str, Callable[[], object]] = {
            "bare": bare,
            "one site": lambda: producer.produce(1, [one]),
            f"resid_post of {len(residual)} layers": lambda: producer.produce(1, residual),
            f"every point of {len(residual)} layers": lambda: producer.produce(1, every),
        }
        for run in runs.values():
            run()
        rounds = [{name: seconds_of(run) for name, run in runs.items()} for _ in range(args.rounds)]
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {tokens_ST.numel():,} tokens")
    for name in runs:
        seconds = statistics.median(times[name] for times in rounds)
        share = statistics.median(times["bare"] / times[name] for times in rounds)
        print(f"{name}: {tokens_ST.numel() / seconds:,.0f} tokens/s, {share:.2f} of the bare model")


if __name__ == "__main__":
    main()
