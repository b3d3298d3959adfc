"""Language model checkpoints, tiny and random, in formats that transformers does not write; and how loading fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gsae_ray.config.sections import ModelSettings
from gsae_ray.errors import UserError

PUBLISHED: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 32,
    "n_heads": 4,
    "d_head": 8,
    "d_mlp": 96,
    "n_ctx": 64,
    "d_vocab": 4096,
    "act_fn": "gelu",
    "attn_only": False,
    "normalization": "LN",
    "tokenizer_name": "builtin",
    "lr": 0.001,  # they hold the settings of their training too
}
"""The keys that published TransformerLens configurations have."""


def save_transformer_lens(directory: Path, weights: bool = True, **config: Any) -> Path:
    """A checkpoint as TransformerLens' authors published theirs; without `weights` the configuration alone."""
    values = {**PUBLISHED, **config}
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(values))
    if weights:
        torch.save(random_weights(**config), directory / "model_final.pth")
    return directory


def random_weights(**config: Any) -> dict[str, Tensor]:
    """The state dict of such a checkpoint, the same at every call."""
    c = {**PUBLISHED, **config}
    d, heads, d_head, mlp = c["d_model"], c["n_heads"], c["d_head"], c["d_mlp"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (c["d_vocab"], d),
        "pos_embed.W_pos": (c["n_ctx"], d),
        "ln_final.w": (d,),
        "ln_final.b": (d,),
        "unembed.W_U": (d, c["d_vocab"]),
        "unembed.b_U": (c["d_vocab"],),
    }
    for block in (f"blocks.{layer}." for layer in range(c["n_layers"])):
        shapes |= {f"{block}{norm}.{part}": (d,) for norm in ("ln1", "ln2") for part in "wb"}
        shapes |= {f"{block}attn.W_{x}": (heads, d, d_head) for x in "QKV"}
        shapes |= {f"{block}attn.b_{x}": (heads, d_head) for x in "QKV"}
        shapes |= {f"{block}attn.W_O": (heads, d_head, d), f"{block}attn.b_O": (d,)}
        shapes |= {f"{block}mlp.W_in": (d, mlp), f"{block}mlp.b_in": (mlp,)}
        shapes |= {f"{block}mlp.W_out": (mlp, d), f"{block}mlp.b_out": (d,)}
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for layer in range(c["n_layers"]):
        weights[f"blocks.{layer}.attn.mask"] = torch.ones(c["n_ctx"], c["n_ctx"]).tril().bool()
        weights[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-1e5)
    return weights


def complaint(load: Callable[[ModelSettings], object], model: ModelSettings) -> str:
    """What `load` says of a model that it refuses: one line that begins with a key of `model`."""
    with pytest.raises(UserError) as error:
        load(model)
    message = str(error.value)
    assert message.startswith("model.") and "\n" not in message
    return message
