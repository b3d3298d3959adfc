"""Sparse autoencoders: one file an architecture, a registry, and their formats on disk. No Ray here.

Names are imported at first use: what only asks for the files or the configuration of an SAE does without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors, what `_MODULES` says
    from gsae_ray.saes.base import SAE as SAE
    from gsae_ray.saes.batchtopk import BatchTopKSAE as BatchTopKSAE
    from gsae_ray.saes.files import from_bytes as from_bytes
    from gsae_ray.saes.formats import load as load
    from gsae_ray.saes.gated import GatedSAE as GatedSAE
    from gsae_ray.saes.jumprelu import JumpReLUSAE as JumpReLUSAE
    from gsae_ray.saes.losses import Losses as Losses
    from gsae_ray.saes.matryoshka_batchtopk import MatryoshkaBatchTopKSAE as MatryoshkaBatchTopKSAE
    from gsae_ray.saes.objective import Objective as Objective
    from gsae_ray.saes.p_anneal import PAnnealSAE as PAnnealSAE
    from gsae_ray.saes.registry import REGISTRY as REGISTRY
    from gsae_ray.saes.registry import build as build
    from gsae_ray.saes.registry import register as register
    from gsae_ray.saes.registry import trainable_architectures as trainable_architectures
    from gsae_ray.saes.rescale_shift import RescaleShiftSAE as RescaleShiftSAE
    from gsae_ray.saes.sae_config import SAEConfig as SAEConfig
    from gsae_ray.saes.serialise import to_bytes as to_bytes
    from gsae_ray.saes.standard import StandardSAE as StandardSAE
    from gsae_ray.saes.topk import TopKSAE as TopKSAE

_MODULES = {
    "REGISTRY": "registry",
    "SAE": "base",
    "BatchTopKSAE": "batchtopk",
    "GatedSAE": "gated",
    "JumpReLUSAE": "jumprelu",
    "Losses": "losses",
    "MatryoshkaBatchTopKSAE": "matryoshka_batchtopk",
    "Objective": "objective",
    "PAnnealSAE": "p_anneal",
    "RescaleShiftSAE": "rescale_shift",
    "SAEConfig": "sae_config",
    "StandardSAE": "standard",
    "TopKSAE": "topk",
    "build": "registry",
    "from_bytes": "files",
    "load": "formats",
    "register": "registry",
    "to_bytes": "serialise",
    "trainable_architectures": "registry",
}
"""Name -> the module that has it."""

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'gsae_ray.saes' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"gsae_ray.saes.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
