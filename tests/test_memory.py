"""Predicted memory against that of real trainers and producers, each in a process of its own: within 20 %.

The part that every process has (`PROCESS`) is left out of both: it would hide the rest.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trials import random_sae

from gsae_ray.memory import PROCESS, of_producer, of_trial
from gsae_ray.saes import to_bytes
from gsae_ray.sweep import Sweep

pytestmark = pytest.mark.slow
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
import safetensors.torch
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.stream import RowStream
from gsae_ray.sweep import Sweep
from gsae_ray.training.trainer import Trainer
from test_memory import trial_of
from trainers import ArraySource, SITE
trial = trial_of({values!r}, {n})
steps = 3 * trial.training.batch_size
layout = Layout((steps,), {{SITE: {n}}}, "float32", chunk_bytes=2**40)
source = ArraySource(torch.randn(steps, {n}), layout)
torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))], fused=True).step()
before = rss()
trainer = Trainer(trial, RowStream(source, layout, SITE), {device!r})
trainer.train_interval()
safetensors.torch.save_file(trainer.state()[0], {folder!r} + "/checkpoint")
peak_mib(before)
"""
PRODUCER = """
from pathlib import Path
from rich.console import Console
from gsae_ray.activations.producer import Producer
from gsae_ray.display import Display
from gsae_ray.plan import prepare, producer_spec
from gsae_ray.sweep import Sweep
plan = prepare(Sweep.model_validate({values!r}), Path({folder!r}), Display(Console(quiet=True)))
sites = sorted(plan.layout.widths)
before = rss()
producer = Producer(producer_spec(plan))
if {what!r} == "produce":
    made = producer.produce(0, sites)
else:
    cfg, weights = (Path({folder!r}, name).read_bytes() for name in ("cfg", "weights"))
    producer.evaluate(plan.trials[0].site, cfg.decode(), weights)
peak_mib(before)
"""


def values(model: str = "builtin", **sections: Any) -> dict[str, Any]:
    return {
        "name": "memory",
        "model": {"name": model},
        "dataset": {"name": "builtin"},
        "sites": {"layers": [1], "points": ["resid_post"]},
        "saes": [{"architecture": "standard", "widths": [64], "l1_coefficient": [1]}],
        "training": {"tokens": 1000, "batch_size": 10},
        "evaluation": {"tokens": 1000},
        **sections,
    }


def training(architecture: str, width: int, batch: int) -> dict[str, Any]:
    """Three steps."""
    return values(
        saes=[{"architecture": architecture, "widths": [width], "l1_coefficient": [1]}],
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
    """MiB that a process took at most, beyond what it had before; of the GPU if it used one."""
    done = subprocess.run([sys.executable, "-c", COMMON + code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split("peak")[-1])


@pytest.mark.parametrize("architecture", ["gated", "standard"])
@pytest.mark.parametrize(("n", "width", "batch"), [(256, 65_536, 128), (256, 16_384, 4096)])
def test_a_trial(architecture: str, n: int, width: int, batch: int, tmp_path: Path) -> None:
    given = training(architecture, width, batch)
    found = trainer_mib(given, n, tmp_path)
    predicted = (of_trial(trial_of(given, n), on_gpu=False).host - PROCESS) / MIB
    assert predicted == pytest.approx(found, rel=0.2)


@pytest.mark.parametrize("what", ["produce", "evaluate", "evaluate the weights"])
def test_a_producer(what: str, tmp_path: Path) -> None:
    from gsae_ray.activations.models import load_skeleton
    from gsae_ray.activations.sites import site_widths

    sections: dict[str, Any] = {
        "produce": {
            "sites": {"layers": [0, 1, 2, 3], "points": ["mlp_post"]},
            "dataset": {"name": "builtin", "shuffle_tokens": 65_000},
            "training": {"tokens": 65_000, "batch_size": 10},
        },
        "evaluate": {
            "saes": [{"architecture": "gated", "widths": [32_768], "l1_coefficient": [1]}],
            "evaluation": {"tokens": 4096, "batch": 8},
        },
        "evaluate the weights": {  # which take more than the features of a batch
            "sites": {"layers": [1], "points": ["mlp_post"]},
            "saes": [{"architecture": "gated", "widths": [65_536], "l1_coefficient": [1]}],
            "evaluation": {"tokens": 1024, "batch": 1},
        },
    }[what]
    given = values(**sections)
    sweep = Sweep.model_validate(given)
    skeleton = load_skeleton(sweep.model)
    widths = {site.name: width for site, width in site_widths(skeleton, sweep.used_sites).items()}
    block = 65_000 * 4 * sum(widths.values()) if what == "produce" else 0
    trials = [] if what == "produce" else sweep.expand(site_widths(skeleton, sweep.used_sites), {})
    for trial in trials:
        cfg, weights = to_bytes(random_sae(trial))
        (tmp_path / "cfg").write_text(cfg)
        (tmp_path / "weights").write_bytes(weights)
    predicted = (of_producer(sweep, skeleton, widths, block, trials).host - PROCESS) / MIB
    found = measured(PRODUCER.format(values=given, folder=str(tmp_path), what=what))
    assert predicted == pytest.approx(found, rel=0.2)
