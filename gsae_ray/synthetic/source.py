"""Synthetic activations as a source of rows for producers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gsae_ray.config.synthetic import SITE, SyntheticSettings
from gsae_ray.language_model.source import HeldOutRows, KnownFeatures, RowBatch
from gsae_ray.synthetic.rows import RowGenerator

GROUP_ROWS = 128
"""Held-out rows of a group, the unit of resampling. Rows are independent, so that any number would do."""


@dataclasses.dataclass(frozen=True)
class SyntheticSpec:
    """What a `SyntheticSource` is made from, in any process."""

    settings: SyntheticSettings
    rows: tuple[int, ...]
    """Rows of each block."""
    heldout_rows: int
    seed: int
    """Of the rows of blocks."""
    max_norm: float | None
    """As `RowSettings.max_norm`."""

    def open(self) -> SyntheticSource:
        """Makes the dictionary."""
        return SyntheticSource(self)


class SyntheticSource:
    """See `ActivationSource`."""

    device = torch.device("cpu")

    def __init__(self, spec: SyntheticSpec) -> None:
        self.spec = spec
        self.max_norm = spec.max_norm
        self.generator = RowGenerator(spec.settings)

    def block(self, block: int, sites: Sequence[str]) -> Iterator[RowBatch]:
        """The block's rows; they have no positions."""
        for x_RD, _ in self.generator.block(self.spec.seed, block, self.spec.rows[block]):
            yield RowBatch(dict.fromkeys(sites, x_RD), torch.zeros(len(x_RD), dtype=torch.int64))

    def heldout(self) -> HeldOutRows:
        """The held-out rows, with what is true of them."""
        features = self.generator.features
        known = KnownFeatures(
            torch.from_numpy(features.directions_GD), torch.from_numpy(features.parent_G), self._known
        )
        return HeldOutRows(-(-self.spec.heldout_rows // GROUP_ROWS), self._heldout, known)

    def _heldout(self, site: str) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x_RD, group_R) for x_RD, group_R, _ in self._known(site))

    def _known(self, site: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        assert site == SITE.name, f"synthetic activations are at {SITE}"
        start = 0
        for x_RD, active_RG in self.generator.heldout(self.spec.heldout_rows):
            yield x_RD, torch.arange(start, start + len(x_RD)) // GROUP_ROWS, active_RG
            start += len(x_RD)
