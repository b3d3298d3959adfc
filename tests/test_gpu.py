"""On a GPU, where there is one: sweeps whose trials share it, faults among them, and the memory that was predicted."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from faults import SWEEP, Home, Outcome, assert_undisturbed, disturbed, position, processes, seed, send
from footprint import MIB, trainer_mib, training, trial_of

from gsae_ray.capacity.memory import CUDA_CONTEXT, trial_memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
ON_GPU: dict[str, Any] = copy.deepcopy(SWEEP)
ON_GPU["producers"] |= {"gpus": 0.2}
ON_GPU["trials"] |= {"gpus": "auto"}
for _entry in ON_GPU["saes"]:
    _entry.pop("engine", None)  # sparse-cpu's
ENGINES = ["dense", "sparse-cuda"]
CHECKS = Path(__file__).parent / "training" / "triton_checks.py"


@pytest.fixture(scope="module")
def rng() -> random.Random:
    return random.Random(seed())


@pytest.fixture(scope="module", autouse=True)
def _all_of_the_machine() -> Iterator[None]:
    """All trials run side by side: a Ray with every core, in place of one that other files may have left."""
    ray.shutdown()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    assert ray.cluster_resources()["GPU"] >= 1
    yield
    ray.shutdown()
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)  # as conftest's


@pytest.fixture(scope="module", params=ENGINES)
def on_gpu(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The sweep with each of the engines for GPUs."""
    return {**copy.deepcopy(ON_GPU), "training": {**ON_GPU["training"], "engine": request.param}}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, on_gpu: dict[str, Any]) -> Outcome:
    """The undisturbed sweep, its trials side by side on the GPU."""
    home = Home(tmp_path_factory.mktemp("quiet"), on_gpu)
    result = home.run()
    assert result.failures == {} and result.forward_ratio == 1.0
    begun = {name: directory.newest_begun for name, directory in home.trials.items()}
    assert len({facts["pid"] for facts in begun.values()}) == 4
    assert all(torch.cuda.get_device_name(0) in facts["machine"] for facts in begun.values())
    return Outcome.of(home)


def test_a_trial_alone_on_the_gpu_is_the_same(tmp_path: Path, on_gpu: dict[str, Any], quiet: Outcome) -> None:
    values = copy.deepcopy(on_gpu)
    values["trials"] |= {"gpus": 0.6, "max_concurrent": 1}
    home = Home(tmp_path, values)
    home.run()
    assert Outcome.of(home).weights == quiet.weights


def test_sigkill_of_a_trial(tmp_path: Path, on_gpu: dict[str, Any], quiet: Outcome, rng: random.Random) -> None:
    home = Home(tmp_path, on_gpu)
    with disturbed(home, position(rng), lambda trial: os.kill(home.pid(trial), signal.SIGKILL)):
        result = home.run()
    assert result.failures == {} and result.forward_ratio == 1.0
    assert_undisturbed(home, quiet)


def test_sigkill_of_all_producers(tmp_path: Path, on_gpu: dict[str, Any], quiet: Outcome) -> None:
    """They get their part of the GPU back."""
    home = Home(tmp_path, on_gpu)
    with disturbed(home, 0.03, lambda _: send(signal.SIGKILL, processes("ProducerActor"))):
        result = home.run()
    assert "producer 2 of 2 is gone" in home.events and result.forward_ratio == 1.0
    assert_undisturbed(home, quiet)


def test_kernels_compute_what_the_equations_say() -> None:
    """In a process of its own, where nothing has asked for Triton's interpreter."""
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", str(CHECKS)], check=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ["gated", "standard"])
@pytest.mark.parametrize(("n", "width", "batch"), [(768, 24_576, 4096), (2304, 16_384, 4096), (2304, 131_072, 1024)])
def test_the_memory_of_a_trial(engine: str, architecture: str, n: int, width: int, batch: int, tmp_path: Path) -> None:
    given = training(architecture, width, batch)
    given["training"]["engine"] = engine
    given["trials"] = {"gpus": 1}
    found = trainer_mib(given, n, tmp_path, "cuda")
    predicted = (trial_memory(trial_of(given, n), on_gpu=True).gpu - CUDA_CONTEXT) / MIB
    print(f"predicted {predicted:.0f} MiB, measured {found:.0f}: {predicted / found:.3f}")  # noqa: T201
    assert predicted == pytest.approx(found, rel=0.2)


def test_the_memory_of_a_context() -> None:
    """Which is in no allocator's books."""
    code = """
import subprocess, torch
def used():
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
before = used()
a = torch.ones(64, 64, device="cuda")
(a @ a).sum().item()
torch.nn.functional.relu(a).bfloat16()
print(used() - before - torch.cuda.memory_reserved() / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"context {float(done.stdout):.0f} MiB")  # noqa: T201
    assert float(done.stdout) <= 1.1 * CUDA_CONTEXT / MIB, "of other GPUs it may be less"
