"""The end of a model, from the residual stream to its logits, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import TINY, D, model_of
from torch import nn

from gsae_ray.config.site import Site
from gsae_ray.language_model.unembedding import unembedding_of, writes_to_residual_stream


@pytest.mark.parametrize("name", TINY)
def test_logits_are_those_of_the_models_own_norm_and_head(name: str) -> None:
    model: Any = model_of(name)
    found = unembedding_of(model)
    assert found is not None and found.width == D
    norm = model.get_submodule(TINY[name].norm)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.linspace(0.5, 2, D))
        found = unembedding_of(model)
        assert found is not None
        x_D = torch.randn(D, generator=torch.Generator().manual_seed(0)) + 0.7
        head = model.get_output_embeddings()
        change_V = head(norm(x_D[None]))[0] - head(norm(-x_D[None]))[0]  # a bias is on both sides
        norm.load_state_dict(before)
    moved_V = (found.directions(x_D[None]) @ found.W_VD.T)[0]
    size = (x_D - x_D.mean()).square().mean().sqrt() if found.centred else x_D.square().mean().sqrt()
    torch.testing.assert_close(moved_V, change_V / 2 * size, rtol=1e-3, atol=1e-4)
    assert found.centred == ("less its mean" in found.described)


def test_a_model_without_a_known_end_has_none() -> None:
    model: Any = model_of("llama")
    assert unembedding_of(nn.Linear(2, 2)) is None and unembedding_of(model.model) is None


def test_sites_of_the_residual_stream() -> None:
    stream = ["blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.mlp.hook_in:hook_mlp_out"]
    others = ["blocks.0.mlp.hook_in", "blocks.0.attn.hook_z", "model.layers.0:output"]
    assert [writes_to_residual_stream(Site(name)) for name in (*stream, *others)] == [True] * 3 + [False] * 3
