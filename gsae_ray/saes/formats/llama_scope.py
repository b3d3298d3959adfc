"""Llama Scope, and what llamascopium trains: `config.json` and `sae_weights.safetensors`.

After llamascopium 2.0.0b34, `models/sae.py`. The encoder takes x, not x − b_D.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsae_ray.errors import shown
from gsae_ray.saes.base import SAE, WEIGHTS_FILE
from gsae_ray.saes.formats.foreign import ActivationsOf, assemble, checked, read_json, read_safetensors

CONFIG = "config.json"
FILES = f"{CONFIG} with {WEIGHTS_FILE}"
NAMES = (CONFIG, WEIGHTS_FILE)

_SHAPES = {"W_E": "DF", "b_E": "F", "W_D": "FD", "b_D": "D"}
_THRESHOLD = "activation_function.log_jumprelu_threshold"
_NORM = "dataset_average_activation_norm."


def recognises(directory: Path) -> bool:
    """Whether there are a `config.json` and a `sae_weights.safetensors`."""
    return (directory / CONFIG).is_file() and (directory / WEIGHTS_FILE).is_file()


def read(directory: Path) -> SAE:
    """The SAE of a folder. It takes raw activations, and its features are in their units: norms of data are folded.

    Raises:
        ValueError: the files hold no SAE that we know, or are damaged; in one line.
        OSError: they cannot be read.
    """
    settings = read_json(directory / CONFIG)
    _check_kind(settings)
    tensors = read_safetensors(directory / WEIGHTS_FILE)
    if "encoder.weight" in tensors:
        raise ValueError(f"{WEIGHTS_FILE}: encoder.weight is of a layout before llamascopium's, which is not read")
    norms = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_NORM)}
    activation = settings.get("act_fn")
    shapes = {**_SHAPES, _THRESHOLD: "F"} if activation == "jumprelu" else _SHAPES
    tensors = checked(tensors, shapes, WEIGHTS_FILE)
    ours = {"W_enc": tensors["W_E"], "b_enc": tensors["b_E"], "W_dec": tensors["W_D"], "b_dec": tensors["b_D"]}
    hyperparameters: dict[str, Any] = {"subtract_b_dec": False}
    norms_F = ours["W_dec"].norm(dim=1) if settings.get("sparsity_include_decoder_norm", True) else torch.ones(1)
    if activation == "relu":
        architecture = "standard"
    elif activation == "jumprelu":  # z ‖d‖ > θ
        architecture, ours["threshold"] = "jumprelu", tensors[_THRESHOLD].exp() / norms_F
    else:
        architecture, hyperparameters["k"] = "topk", settings.get("top_k")
        if not torch.allclose(norms_F, torch.ones(1), atol=1e-5):
            raise ValueError(f"{CONFIG}: sparsity_include_decoder_norm with decoder norms other than 1 is not known")
    site = settings.get("hook_point_in")
    sae = assemble("llama_scope", architecture, ours, settings, hyperparameters, ActivationsOf(site))
    if settings.get("norm_activation") == "dataset-wise":
        sae.fold_scale(_scale(norms, site, sae.cfg.d_in))
    return sae


def _scale(norms: dict[str, Tensor], hook: object, d_in: int) -> float:
    """The factor of activations that makes their mean norm √d_in, as in training."""
    norm = norms.get(f"{_NORM}{hook}")
    if norm is None or norm.numel() != 1 or not 0 < float(norm) < math.inf:
        raise ValueError(f"{WEIGHTS_FILE}: {_NORM}{shown(hook, quoted=False)} is missing, or no positive number")
    return math.sqrt(d_in) / float(norm)


def _check_kind(settings: dict[str, Any]) -> None:
    """Refuses what computes another function."""
    known: dict[str, tuple[Any, ...]] = {
        "sae_type": ("sae",),
        "act_fn": ("relu", "jumprelu", "topk"),
        "norm_activation": ("dataset-wise", "inference"),
        "use_glu_encoder": (False, None),
        "use_decoder_bias": (True, None),
    }
    for key, values in known.items():
        if settings.get(key) not in values:
            names = ", ".join(shown(value) for value in values if value is not None)
            raise ValueError(f"{CONFIG}: {key} is {shown(settings.get(key))}; known: {names}")
    if settings.get("hook_point_in") != settings.get("hook_point_out"):
        raise ValueError(f"{CONFIG}: hook_point_out is another place than hook_point_in: a transcoder, not an SAE")
