"""A trial that is trained in steps of known rows and checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from trials import expand, row_metrics

from gsae_ray.storage.trial_directory import TrialDirectory

(TRIAL,) = expand()


def state_at(tokens: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(tokens)
    tensors = {
        "sae.W_enc": torch.randn(8, 16, generator=generator),
        "adam.step.W_enc": torch.tensor(float(tokens)),
        "bf16": torch.randn(3, generator=generator).bfloat16(),
    }
    return tensors, {"step": tokens // 64, "position": tokens, "scale": 0.1 + 0.2}


def train(directory: TrialDirectory, first: int, last: int, checkpoint_every: int = 2) -> None:
    """Rows `first` to `last`, a row every 64 tokens, with checkpoints in between."""
    for step in range(first, last + 1):
        directory.append(64 * step, row_metrics(64 * step))
        if step % checkpoint_every == 0:
            directory.checkpoint(64 * step, *state_at(64 * step))


def steps_of(directory: TrialDirectory) -> list[int]:
    return [row["step"] // 64 for row in directory.rows()[0]]


def assert_state(actual: tuple[dict[str, torch.Tensor], dict[str, Any]] | None, tokens: int) -> None:
    assert actual is not None
    tensors, rest = state_at(tokens)
    assert actual[1] == rest
    assert actual[0].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert actual[0][name].dtype == tensor.dtype
        assert torch.equal(actual[0][name], tensor)
