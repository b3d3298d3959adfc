"""The registry of architectures.

A new architecture is one new file in this folder: a subclass of `SAE` with its equations in the docstring, its
`Hyperparameters`, `encode` and `losses`, registered by `@register("name")`. Where a default of `SAE` does not fit it
(what sets its sparsity, what has the units of activations, new features, costs) it overrides that.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import TypeVar

from gsae_ray.errors import UserError, shown, suggest
from gsae_ray.saes.base import SAE, SAEConfig

SAEType = TypeVar("SAEType", bound=type[SAE])


class _Registry(dict[str, type[SAE]]):
    """Architectures by name. The first look imports every module of this package, so that a file is enough."""

    def __init__(self) -> None:
        super().__init__()
        self._complete = False

    def _fill(self) -> None:
        if not self._complete:
            self._complete = True
            package = importlib.import_module("gsae_ray.saes")
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"gsae_ray.saes.{module.name}")

    def __contains__(self, name: object) -> bool:
        self._fill()
        return super().__contains__(name)

    def __getitem__(self, name: str) -> type[SAE]:
        self._fill()
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(sorted(super().__iter__()))  # not by which module was imported first


REGISTRY = _Registry()
"""The class of each architecture."""


def register(name: str) -> Callable[[SAEType], SAEType]:
    """Class decorator: makes an architecture known to sweep files, `load` and the frontier.

    Raises:
        TypeError: `sparsity_hyperparameter` is none of its hyperparameters, or it has an attribute of before.
    """

    def add(sae: SAEType) -> SAEType:
        sparsity = sae.sparsity_hyperparameter
        if sparsity not in (None, *sae.Hyperparameters.model_fields):
            raise TypeError(f"{name}: sparsity_hyperparameter is {sparsity!r}, which is none of its Hyperparameters")
        if hasattr(sae, "sparsity_in_l1_units"):
            raise TypeError(f'{name}: sparsity_in_l1_units is now sparsity_units: "l1" for True, None for False')
        sae.architecture = name
        REGISTRY[name] = sae
        return sae

    return add


def trainable_architectures() -> tuple[str, ...]:
    """Names of the architectures that a sweep can train."""
    return tuple(REGISTRY)


def build(cfg: SAEConfig) -> SAE:
    """An SAE of this configuration with all weights zero.

    Raises:
        UserError: the architecture is unknown.
    """
    if cfg.architecture not in REGISTRY:
        raise UserError(f"architecture: unknown {shown(cfg.architecture)}; {suggest(cfg.architecture, REGISTRY)}")
    return REGISTRY[cfg.architecture](cfg)
