"""Saved SAEs as bytes: `cfg.json`, and safetensors of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import safetensors.torch
from torch import Tensor

from gsae_ray.errors import UserError
from gsae_ray.saes import config_file
from gsae_ray.saes.folder import CONFIG_FILE, WEIGHTS_FILE
from gsae_ray.saes.sae_config import SAEConfig
from gsae_ray.saes.saelens_config import NO_FORM, form_of


class Saved(Protocol):
    """What is written of an `SAE`."""

    cfg: SAEConfig

    def saelens_form(self) -> dict[str, Any]:
        """As of an SAE."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """As of a module."""


def saved_files(sae: Saved) -> dict[str, bytes]:
    """Name -> contents of the files of a saved SAE, in the order in which they are written."""
    cfg, weights = to_bytes(sae)
    return {WEIGHTS_FILE: weights, CONFIG_FILE: (cfg + "\n").encode()}


def to_bytes(sae: Saved) -> tuple[str, bytes]:
    """(cfg.json, sae_weights.safetensors) as they would be saved."""
    return config_file.encode(sae.cfg, saelens_form_or_reason(sae)), weight_bytes(sae)


def saelens_form(sae: Saved) -> dict[str, Any]:
    """What SAELens' `cfg.json` says of its function.

    Raises:
        UserError: SAELens has none.
    """
    return form_of(sae.cfg, sae.saelens_form())


def saelens_form_or_reason(sae: Saved) -> dict[str, Any]:
    """`saelens_form`; where there is none, the reason in the architecture's place."""
    try:
        return saelens_form(sae)
    except UserError as error:
        return {"architecture": f"{NO_FORM}{error}"}


def weight_bytes(sae: Saved) -> bytes:
    """The parameters and buffers as safetensors, contiguous; those that are no integers as float32."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    return safetensors.torch.save({k: t.float() if t.is_floating_point() else t for k, t in state.items()})
