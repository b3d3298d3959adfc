"""FLOP/s of training steps and forward passes on a GPU ÷ those of its data sheet: what `pace.EFFICIENCY` stands for.

    python tests/benchmarks/gpu.py H100    # as Ray names it

Training steps of real trainers on rows in memory, and blocks made by a real producer of a random model of GPT-2's
shape, both by the FLOPs that `gsae-ray plan` counts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from trainers import SITE, ArraySource

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer import Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.capacity.forecast import flops_a_row
from gsae_ray.capacity.gpus import gpu_of
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.training.trainer import Trainer

SHAPES = [(768, 24_576, 4096), (2304, 16_384, 4096)]
INTERVALS = 5


def values(**sections: Any) -> dict[str, Any]:
    return {
        "name": "gpu",
        "model": {"name": "builtin"},
        "dataset": {"name": "builtin"},
        "sites": {"layers": [1], "points": ["resid_post"]},
        "saes": [{"architecture": "standard", "widths": [64], "l1_coefficient": [1]}],
        "training": {"tokens": 1000, "batch_size": 10},
        "evaluation": {"tokens": 1000},
        **sections,
    }


def steps(architecture: str, n: int, width: int, batch: int, dtype: str) -> tuple[float, float]:
    """(TFLOP/s, ms of a step) of the median interval of training."""
    interval = 20 * batch
    tokens = (INTERVALS + 1) * interval
    training = {"tokens": tokens, "batch_size": batch, "log_every_tokens": interval, "lr": 1e-5}
    saes = [{"architecture": architecture, "widths": [width], "l1_coefficient": [1]}]
    sweep = Sweep.model_validate(values(saes=saes, training=training))
    (trial,) = sweep.expand(dict.fromkeys(sweep.used_sites, n), {})
    layout = Layout((tokens,), {SITE: n}, dtype, chunk_bytes=2**25)
    rows = torch.randn(tokens, n)
    source = ArraySource(rows, layout) if dtype == "float32" else HalfSource(rows, layout)
    trainer = Trainer(trial, RowStream(source, layout, SITE), "cuda")
    found = [trainer.train_interval() for _ in range(INTERVALS + 1)][1:]
    step_ms = 1000 * batch / statistics.median(row["tokens_per_s"] for row in found)
    return flops_a_row(trial) * batch / step_ms / 1e9, step_ms


class HalfSource(ArraySource):
    """Rows in bfloat16, as chunks have them."""

    def __init__(self, rows_RD: torch.Tensor, layout: Layout) -> None:
        super().__init__(rows_RD, layout)
        self.array = rows_RD.bfloat16().view(torch.int16).numpy()


def forward(dtype: str) -> tuple[float, float]:
    """(TFLOP/s, tokens/s) of a producer that makes blocks."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        config = GPT2Config(n_embd=1024, n_layer=24, n_head=16, n_positions=1024)
        GPT2LMHeadModel(config).save_pretrained(folder + "/model")
        given = values(
            model={"name": folder + "/model", "tokenizer": "builtin", "dtype": dtype, "context_size": 256},
            dataset={"name": "builtin", "shuffle_tokens": 65_536},
            sites={"layers": [22], "points": ["resid_post"]},
            training={"tokens": 4 * 65_536, "batch_size": 64},
            producers={"gpus": 1, "batch": 32},
        )
        plan = prepare(Sweep.model_validate(given), Path(folder))
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


def main() -> None:
    gpu = gpu_of({f"accelerator_type:{sys.argv[1]}": 1})
    assert gpu is not None, f"no data sheet of {sys.argv[1]}"
    print(f"{time.strftime('%Y-%m-%d')}, {torch.cuda.get_device_name(0)}, torch {torch.__version__}, data sheet {gpu}")
    for dtype in ("float32", "bfloat16"):
        for n, width, batch in SHAPES:
            for architecture in ("gated", "standard"):
                tflops, step_ms = steps(architecture, n, width, batch, dtype)
                print(
                    f"{architecture} n={n} width={width} batch={batch}, rows in {dtype}: {step_ms:.1f} ms a step, "
                    f"{batch * 1000 / step_ms:,.0f} tokens/s, {tflops:.1f} TFLOP/s, {tflops / gpu.float32:.2f}",
                    flush=True,
                )
    for dtype, sheet in (("float32", gpu.float32), ("bfloat16", gpu.bfloat16)):
        tflops, tokens = forward(dtype)
        print(f"forward in {dtype}: {tokens:,.0f} tokens/s, {tflops:.1f} TFLOP/s, {tflops / sheet:.2f}", flush=True)


if __name__ == "__main__":
    main()
