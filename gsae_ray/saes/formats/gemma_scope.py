"""Gemma Scope: JumpReLU SAEs whose encoder takes x, not x − b_dec.

The first set has `params.npz` (Lieberum et al. 2024), the second `config.json` and `params.safetensors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsae_ray.errors import shown
from gsae_ray.saes.base import SAE
from gsae_ray.saes.formats.foreign import DAMAGE, ActivationsOf, assemble, checked, read_json, read_safetensors

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
FILES = f"{FIRST}, or {CONFIG} with {SECOND}"
NAMES = (FIRST, SECOND, CONFIG)

_SHAPES = {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D", "threshold": "F"}


def recognises(directory: Path) -> bool:
    """Whether there is a `params.npz` or a `params.safetensors`."""
    return (directory / FIRST).is_file() or (directory / SECOND).is_file()


def read(directory: Path) -> SAE:
    """The SAE of a folder.

    Raises:
        ValueError: the files hold no SAE that we know, or are damaged; in one line.
        OSError: they cannot be read.
    """
    settings: dict[str, Any] = {}
    if (directory / FIRST).is_file():
        ours = checked(_read_npz(directory / FIRST), _SHAPES, FIRST)
    else:
        settings = read_json(directory / CONFIG)
        tensors = read_safetensors(directory / SECOND)
        _check_kind(settings, tensors)
        lower = checked(tensors, {name.lower(): axes for name, axes in _SHAPES.items()}, SECOND)
        ours = {name: lower[name.lower()] for name in _SHAPES}
    of = ActivationsOf(model=settings.get("model_name"))
    return assemble("gemma_scope", "jumprelu", ours, settings, {"subtract_b_dec": False}, of)


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except DAMAGE as error:
        raise ValueError(f"{path.name} is not a file of arrays of numbers: {shown(error, quoted=False)}") from error


def _check_kind(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuses what is no SAE with JumpReLU."""
    if (architecture := settings.get("architecture")) != "jump_relu":
        raise ValueError(f"{CONFIG}: architecture is {shown(architecture)}; known: 'jump_relu'")
    into, out = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    if "affine_skip_connection" in tensors or settings.get("affine_connection") or (into and out and into != out):
        raise ValueError(f"{CONFIG}: this is a transcoder, not an SAE")
