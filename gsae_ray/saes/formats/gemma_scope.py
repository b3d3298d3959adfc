"""Gemma Scope: JumpReLU SAEs whose encoder takes x, not x − b_dec.

The first set has `params.npz` (Lieberum et al. 2024), the second `config.json` and `params.safetensors`. Transcoders of
the first set have the same tensors as SAEs: only the names of their published folders tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsae_ray.errors import shown
from gsae_ray.saes.base import SAE
from gsae_ray.saes.formats.foreign import (
    DAMAGE,
    ActivationsOf,
    assemble,
    checked,
    published_names,
    read_json,
    read_safetensors,
)

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
FILES = f"{FIRST}, or {SECOND}"
NAMES = (FIRST, SECOND, CONFIG)

_POINTS = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z"}
"""Their name of a point of a layer -> ours; attn_out is what the output projection gets."""
_MODULES = {
    ".output": "resid_post",
    ".post_feedforward_layernorm.output": "mlp_out",
    ".self_attn.o_proj.input": "attn_out",
}
"""After the layer in `hf_hook_point_in` -> their name of the point."""
_TRANSCODER = "this is a transcoder, not an SAE"
_SHAPES = {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D", "threshold": "F"}


def recognises(directory: Path) -> bool:
    """Whether there is a `params.npz` or a `params.safetensors`."""
    return (directory / FIRST).is_file() or (directory / SECOND).is_file()


def read(directory: Path) -> SAE:
    """The SAE of a folder. What it is of is taken from `config.json`, or from the names of the published folders.

    Raises:
        ValueError: the files hold no SAE that we know, or are damaged; in one line.
        OSError: they cannot be read.
    """
    if (directory / FIRST).is_file():
        of, settings = _first_of(published_names(directory / FIRST, folders=4)), {}
        ours = checked(_read_npz(directory / FIRST), _SHAPES, FIRST)
    else:
        settings = read_json(directory / CONFIG) if (directory / CONFIG).exists() else {}
        tensors = read_safetensors(directory / SECOND)
        of = _second_of(settings, published_names(directory / SECOND, folders=2))
        if "affine_skip_connection" in tensors:
            raise ValueError(f"{SECOND}: {_TRANSCODER}")
        lower = checked(tensors, {name.lower(): axes for name, axes in _SHAPES.items()}, SECOND)
        ours = {name: lower[name.lower()] for name in _SHAPES}
    return assemble("gemma_scope", "jumprelu", ours, settings, {"subtract_b_dec": False}, of)


def _first_of(names: Sequence[str]) -> ActivationsOf:
    """What a `params.npz` is of: gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71. Its tensors do not say it.

    Raises:
        ValueError: it is no SAE at a site; in one line.
    """
    if "embedding" in names[1:]:
        raise ValueError(f"{FIRST}: it lies in embedding: an SAE of embeddings before their scaling, which are no site")
    layer = _first(r"layer_(\d+)", names)
    repository = _first(r"gemma-scope-(\d+b)-(pt|it)-(.+)", names)
    if repository is None:
        return ActivationsOf()
    size, kind, part = repository.groups()
    if "transcoder" in part:
        raise ValueError(f"{FIRST}: it lies in {shown(repository[0])}: {_TRANSCODER}")
    point = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_out"}.get(part.partition("-")[0])
    model = f"google/gemma-2-{size}{'-it' if kind == 'it' else ''}"
    return ActivationsOf(f"blocks.{layer[1]}.{_POINTS[point]}" if layer and point else None, model)


def _second_of(settings: Mapping[str, Any], names: Sequence[str]) -> ActivationsOf:
    """What a `params.safetensors` is of: by `config.json`, or else by resid_post/layer_9_width_16k_l0_small.

    Raises:
        ValueError: it is no SAE with JumpReLU; in one line.
    """
    if not settings:
        if any(re.search("transcoder|clt", name) for name in names):
            raise ValueError(f"{SECOND}: it lies in {shown('/'.join(names[:0:-1]))}: {_TRANSCODER}")
        layer, point = _first(r"layer_(\d+)(_.*)?", names), next((name for name in names if name in _POINTS), None)
        return ActivationsOf(f"blocks.{layer[1]}.{_POINTS[point]}" if layer and point else None)
    if (architecture := settings.get("architecture")) != "jump_relu":
        raise ValueError(f"{CONFIG}: architecture is {shown(architecture)}; known: 'jump_relu'")
    into, out = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    if settings.get("affine_connection") or (into and out and into != out):
        raise ValueError(f"{CONFIG}: {_TRANSCODER}")
    module = re.fullmatch(r"(.+)\.(input|output)", str(into))
    site = f"{module[1]}:{module[2]}" if module else None
    for path, point in _MODULES.items():
        if found := re.fullmatch(rf"(?:.+\.)?layers\.(\d+){re.escape(path)}", str(into)):
            site = f"blocks.{found[1]}.{_POINTS[point]}"
    return ActivationsOf(site, settings.get("model_name"))


def _first(pattern: str, names: Sequence[str]) -> re.Match[str] | None:
    """Of the first name that is of a form."""
    return next((found for name in names if (found := re.fullmatch(pattern, name))), None)


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except DAMAGE as error:
        raise ValueError(f"{path.name} is not a file of arrays of numbers: {shown(error, quoted=False)}") from error
