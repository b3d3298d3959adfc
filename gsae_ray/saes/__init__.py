"""Sparse autoencoders: one file an architecture, a registry, and their formats on disk. No Ray here."""

from gsae_ray.saes.base import SAE, Losses, Objective, SAEConfig, to_bytes
from gsae_ray.saes.files import from_bytes
from gsae_ray.saes.formats import load
from gsae_ray.saes.gated import GatedSAE
from gsae_ray.saes.jumprelu import JumpReLUSAE
from gsae_ray.saes.registry import REGISTRY, build, register, trainable_architectures
from gsae_ray.saes.rescale_shift import RescaleShiftSAE
from gsae_ray.saes.standard import StandardSAE
from gsae_ray.saes.topk import TopKSAE

__all__ = [
    "REGISTRY",
    "SAE",
    "GatedSAE",
    "JumpReLUSAE",
    "Losses",
    "Objective",
    "RescaleShiftSAE",
    "SAEConfig",
    "StandardSAE",
    "TopKSAE",
    "build",
    "from_bytes",
    "load",
    "register",
    "to_bytes",
    "trainable_architectures",
]
