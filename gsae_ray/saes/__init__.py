"""Sparse autoencoders: one file an architecture, a registry, and their files on disk. No Ray here."""

from gsae_ray.saes.base import REGISTRY, SAE, Losses, Objective, SAEConfig, register
from gsae_ray.saes.gated import GatedSAE
from gsae_ray.saes.io import from_bytes, load, save, to_bytes
from gsae_ray.saes.jumprelu import JumpReLUSAE
from gsae_ray.saes.rescale_shift import RescaleShiftSAE
from gsae_ray.saes.standard import StandardSAE

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
    "from_bytes",
    "load",
    "register",
    "save",
    "to_bytes",
]
