"""How much memory a trainer takes, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gsae_ray.config.sweep import Sweep

MIB = 2**20
COMMON = """
import resource, sys
import torch
torch.set_num_threads(1)
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def peak_mib(before):
    # Not ru_maxrss: of a new process that is its parent's.
    status = open("/proc/self/status").read()
    host = int(status.split("VmHWM:")[1].split()[0]) * 1024 - before
    print("peak", (torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else host) / 2**20)
"""
TRAINER = """
sys.path.insert(0, {tests!r})
from pathlib import Path
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.reader import RowStream
from gsae_ray.config.sweep import Sweep
from gsae_ray.storage.checkpoints import Checkpoints
from gsae_ray.training.trainer import Trainer
from footprint import trial_of
from trainers import ArraySource, SITE
trial = trial_of({values!r}, {n})
steps = 3 * trial.training.batch_size
layout = Layout((steps,), {{SITE: {n}}}, "float32", chunk_bytes=2**40)
source = ArraySource(torch.randn(steps, {n}), layout)
before = rss()
trainer = Trainer(trial, RowStream(source, layout, SITE), {device!r})
trainer.train_interval()
Checkpoints(Path({folder!r})).write(0, trainer.state(), lambda: None)
peak_mib(before)
"""


def values(model: str | dict[str, Any] = "builtin", **sections: Any) -> dict[str, Any]:
    return {
        "name": "memory",
        "model": {"name": model} if isinstance(model, str) else model,
        "dataset": {"name": "builtin"},
        "sites": {"layers": [1], "points": ["resid_post"]},
        "saes": [{"architecture": "standard", "widths": [64], "l1_coefficient": [1]}],
        "training": {"tokens": 1000, "batch_size": 10},
        "evaluation": {"tokens": 1000},
        **sections,
    }


SPARSITY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("topk", "batchtopk", "matryoshka_batchtopk"), {"k": 32, "dead_after_tokens": 1}),
    "jumprelu": {"l0_coefficient": 0.01},
}
"""Architecture -> what sets its sparsity; of those of top-k kind some features are dead, and have the further term."""


def training(architecture: str, width: int, batch: int) -> dict[str, Any]:
    """Three steps."""
    return values(
        saes=[{"architecture": architecture, "widths": [width], **SPARSITY.get(architecture, {"l1_coefficient": [1]})}],
        training={"tokens": 3 * batch, "batch_size": batch, "log_every_tokens": 3 * batch, "lr": 1e-5},
    )


def trial_of(given: dict[str, Any], n: int) -> Any:
    sweep = Sweep.model_validate(given)
    (trial,) = sweep.expand(dict.fromkeys(sweep.used_sites, n), {})
    return trial


def trainer_mib(given: dict[str, Any], n: int, folder: Path, device: str = "cpu") -> float:
    """What a trainer takes."""
    return measured(
        TRAINER.format(tests=str(Path(__file__).parent), values=given, n=n, folder=str(folder), device=device)
    )


def measured(code: str) -> float:
    """MiB that a process took at most, beyond what it had before; of the GPU if it used one.

    What glibc keeps of large arrays that were freed hangs on the moves of its own threshold (the same code took 680 or
    980 MiB), so that is fixed: each goes back at once.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    command = [sys.executable, "-c", COMMON + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split("peak")[-1])
