"""Adam is PyTorch's, bit for bit, and loads less."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gsae_ray.saes import SAE, SAEConfig, build
from gsae_ray.training.optimiser import Adam

FACTOR = 3.0
BETAS = (0.8, 0.99)


def sae(architecture: str = "gated") -> SAE:
    made = build(SAEConfig(architecture=architecture, d_in=4, d_sae=8, hyperparameters={"l1_coefficient": 1.0}))
    made.initialise(torch.Generator().manual_seed(0), torch.ones(4))
    return made


def gradients(sae: SAE, step: int) -> None:
    """Those of a step; b_gate has none in the first."""
    generator = torch.Generator().manual_seed(step)
    for name, parameter in sae.named_parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if name == "b_gate" and step == 0 else gradient


def lr(step: int) -> float:
    return 1e-3 / (1 + step)


def theirs(sae: SAE) -> torch.optim.Adam:
    groups: list[dict[str, list[nn.Parameter]]] = [{"params": []}, {"params": []}]
    for name, parameter in sae.named_parameters():
        groups[name.startswith("b_")]["params"].append(parameter)
    return torch.optim.Adam(groups, betas=BETAS, fused=True)


@pytest.mark.parametrize("interrupted", [False, True])
def test_updates_and_moments_are_those_of_pytorchs_class_bit_for_bit(interrupted: bool) -> None:
    own, other = sae(), sae()
    optimiser, expected = Adam(own, BETAS, FACTOR), theirs(other)
    for step in range(5):
        gradients(own, step)
        gradients(other, step)
        optimiser.step(lr(step))
        expected.param_groups[0]["lr"], expected.param_groups[1]["lr"] = lr(step), lr(step) * FACTOR
        expected.step()
        if interrupted:
            tensors, optimiser = optimiser.tensors(), Adam(own, BETAS, FACTOR)
            optimiser.restore(tensors)
    for (name, parameter), twin in zip(own.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, twin), name
        assert optimiser.state[parameter].keys() == expected.state[twin].keys()
        assert all(torch.equal(value, expected.state[twin][key]) for key, value in optimiser.state[parameter].items())


def test_it_has_no_moments_before_the_first_step() -> None:
    made = sae()
    optimiser = Adam(made, BETAS, FACTOR)
    assert optimiser.tensors() == {}
    gradients(made, 1)
    optimiser.step(1e-3)
    optimiser.restore({})
    assert optimiser.tensors() == {}
    optimiser.zero_grad()
    assert all(parameter.grad is None for parameter in made.parameters())


def test_it_does_without_torchdynamo() -> None:
    """Training does, which would else take two seconds and 70 MiB more in each trial's process."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
sys.modules["torch._dynamo"] = None
from trainers import make, run
for architecture in ("gated", "standard"):
    run(make(architecture, gradient_clip=1.0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
