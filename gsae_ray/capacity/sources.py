"""What a source of activations costs, as far as the sweep file and its configuration tell: neither weights nor data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from gsae_ray.capacity.activation_files import FilesCost
from gsae_ray.capacity.language_model import LanguageModelCost
from gsae_ray.capacity.memory import Memory
from gsae_ray.capacity.synthetic import SyntheticCost
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec


class SourceCost(Protocol):
    """What `forecast` needs to know of a source. Each kind of source has one, which `cost_of` chooses."""

    @property
    def name(self) -> str:
        """What makes the rows, in words."""

    @property
    def sweep(self) -> Sweep:
        """The sweep with layers numbered."""

    @property
    def widths(self) -> Mapping[Site, int]:
        """Width of the activations at each used site."""

    @property
    def dtype(self) -> str:
        """Of the activations, and of what producers compute."""

    @property
    def block_flops(self) -> float:
        """FLOPs of a block at all sites."""

    def evaluation_flops(self, trials: Sequence[TrialSpec]) -> float:
        """FLOPs of the source in all evaluations, without those of the SAEs."""

    def producer_memory(self, block_bytes: int, trials: Sequence[TrialSpec]) -> Memory:
        """Memory of a producer at its largest."""

    def disk_bytes(self, blocks: int) -> int:
        """Bytes that so many blocks take in storage before they are made."""

    def notices(self) -> list[str]:
        """What else the user should know, a line each."""


def cost_of(sweep: Sweep) -> SourceCost:
    """What the source of a sweep costs.

    Raises:
        UserError: its configuration cannot be loaded, or does not tell.
    """
    if sweep.activations is not None:
        return FilesCost(sweep)
    return SyntheticCost(sweep) if sweep.is_synthetic else LanguageModelCost(sweep)
