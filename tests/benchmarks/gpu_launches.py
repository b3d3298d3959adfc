"""The parts of `gpu.py` that need a language model, Ray or MLflow."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from gsae_ray.activations.producer import Producer
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import launch
from gsae_ray.driver.prepare import prepare, producer_spec


def _sweep(**sections: Any) -> Sweep:
    common = {
        "name": "gpu",
        "model": {"name": "builtin"},
        "dataset": {"name": "builtin"},
        "sites": {"layers": [1], "points": ["resid_post"]},
        "saes": [{"architecture": "standard", "widths": [64], "l1_coefficient": [1]}],
        "training": {"tokens": 1000, "batch_size": 10},
        "evaluation": {"tokens": 1000},
    }
    return Sweep.model_validate({**common, **sections})


def measure_forward(dtype: str) -> tuple[float, float]:
    """(TFLOP/s, tokens/s) of a producer that makes blocks."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        config = GPT2Config(n_embd=1024, n_layer=24, n_head=16, n_positions=1024)
        GPT2LMHeadModel(config).save_pretrained(folder + "/model")
        given = _sweep(
            model={"name": folder + "/model", "tokenizer": "builtin", "dtype": dtype, "context_size": 256},
            dataset={"name": "builtin", "shuffle_tokens": 65_536},
            sites={"layers": [22], "points": ["resid_post"]},
            training={"tokens": 4 * 65_536, "batch_size": 64},
            producers={"gpus": 1, "batch": 32},
        )
        plan = prepare(given, Path(folder))
        producer = Producer(producer_spec(plan))
        sites = sorted(plan.layout.widths)
        producer.produce(0, sites)
        with FlopCounterMode(display=False) as counter:
            producer.produce(1, sites)
        seconds = []
        for block in (1, 2, 3):
            started = time.perf_counter()
            producer.produce(block, sites)
            seconds.append(time.perf_counter() - started)
        median = statistics.median(seconds)
        return counter.get_total_flops() / median / 1e12, plan.layout.rows[1] / median


def run_sweep() -> str:
    """Trains 16 SAEs of two layers of the built-in model, half of them by each engine; says what came of it."""
    dense, sparse = ({"widths": [8192], "l1_coefficient": [1, 2, 4, 8], "engine": e} for e in ("dense", "sparse-cuda"))
    given = _sweep(
        sites={"layers": [1, 2], "points": ["resid_post"]},
        saes=[{"architecture": "gated", **dense}, {"architecture": "gated", **sparse}],
        training={"tokens": 400_000, "batch_size": 1024, "lr": 1e-3},
        evaluation={"tokens": 32_768},
        producers={"count": 1, "gpus": 0.1},
        trials={"gpus": 0.05},
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        result = launch.run(
            given, storage=Path(folder, "runs"), tracking_uri=f"sqlite:///{folder}/mlflow.db", console=Console()
        )
        seconds = time.monotonic() - started
        rows = result.frontier()
        l0 = rows.groupby("engine")["l0"].mean().to_dict()
    return (
        f"{seconds:.0f} s, {len(rows)} on the frontier, {len(result.failures)} failures, "
        f"forward ratio {result.forward_ratio:.2f}, mean L0 {l0}"
    )
