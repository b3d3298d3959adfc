"""What `plan` says of transcoders: blocks of both places, and the products of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import model_of
from torch.utils.flop_counter import FlopCounterMode

from gsae_ray.capacity.forecast import flops_a_row, forecast
from gsae_ray.capacity.memory import parameter_count, skeleton
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.errors import UserError

ENTRY: dict[str, Any] = {"architecture": "standard", "widths": [64], "l1_coefficient": 1}
TARGET = {"target": {"point": "mlp_out"}}


def sweep(entry: dict[str, Any], **sections: Any) -> Sweep:
    return Sweep.model_validate(
        {
            "name": "plan",
            "model": {"name": "builtin"},
            "dataset": {"name": "builtin"},
            "sites": {"layers": [1, 2], "points": ["mlp_in"]},
            "saes": [entry],
            "training": {"tokens": 40_000, "batch_size": 128},
            "evaluation": {"tokens": 2048},
            **sections,
        }
    )


def test_blocks_hold_both_places_and_evaluations_ablate_one() -> None:
    saes, transcoders = forecast(sweep(ENTRY), slots=2), forecast(sweep({**ENTRY, **TARGET}), slots=2)
    assert transcoders.block_bytes == 2 * saes.block_bytes
    assert transcoders.forward_ratio == 1.0
    assert saes.model_flops < transcoders.model_flops < 1.3 * saes.model_flops, "the MLP of the last layer is run too"
    assert transcoders.evaluation_flops == saes.evaluation_flops
    (kind,) = transcoders.kinds
    assert (kind.architecture, kind.variant, kind.trials) == ("standard", "transcoder", 2)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_flops_of_a_step_are_those_that_torch_counts(architecture: str, skip: bool) -> None:
    entry = {**ENTRY, **TARGET, "architecture": architecture, "skip": skip}
    n, batch = 96, 64
    trial = sweep(entry).expand({Site.of_point(layer, p): n for layer in (1, 2) for p in ("mlp_in", "mlp_out")}, {})[0]
    sae = skeleton(trial)
    counter = FlopCounterMode(display=False)
    with counter:
        x_BD, y_BD = torch.empty(2, batch, n, device="meta")
        sae.losses(x_BD, 1.0, "norm_weighted", y_BD).loss.backward()
    assert flops_a_row(trial) <= counter.get_total_flops() / batch < 1.05 * flops_a_row(trial)
    biases = 64 * (3 if architecture == "gated" else 1)
    assert parameter_count(trial) == 2 * 64 * n + biases + n + (n * n if skip else 0)


def test_what_a_model_does_not_have_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """And by the key that names it: Gemma 4 has no mlp_out."""
    model_of("gemma4_text").config.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"^saes.0.target: no blocks.1.hook_mlp_out in this gemma4_text model: "
    ) as caught:
        forecast(
            sweep({**ENTRY, **TARGET}, model={"name": str(tmp_path), "tokenizer": "builtin", "context_size": 32}),
            slots=1,
        )
    assert "\n" not in str(caught.value)
