"""Where activations come from: what a producer needs of a language model, of files, or of a generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class RowBatch(NamedTuple):
    """Some consecutive rows of a block."""

    rows: dict[str, Tensor]
    """Site name -> rows [R, n], in the dtype of the row stream, on any device."""
    position_R: Tensor
    """Position of each row in its context, on the CPU; of what has no contexts, zeros."""


@dataclasses.dataclass(frozen=True)
class HeldOutContexts:
    """Held-out contexts of a language model, into which SAEs are spliced. A context is the unit of resampling."""

    model: nn.Module
    tokens_ET: Tensor
    """Token ids, and PADDING after the last one of a short context."""
    kept: Callable[[Tensor], Tensor]
    """Token ids [B, T] -> which positions are rows [B, T]."""
    batch: int
    """Contexts of a forward pass."""


@dataclasses.dataclass(frozen=True)
class KnownFeatures:
    """The truth about held-out rows that were made from features: what an SAE is to find."""

    directions_GD: Tensor
    """Direction of each true feature: unit vectors, float32."""
    parent_G: Tensor
    """The feature without which one is never active; −1: none."""
    batches: Callable[[str], Iterable[tuple[Tensor, Tensor, Tensor]]]
    """As `HeldOutRows.batches`, with which true features are active on each row [R, G], on the CPU."""


@dataclasses.dataclass(frozen=True)
class HeldOutRows:
    """Held-out rows of a source that cannot splice: nothing is known of a language model's losses.

    A group of rows (a document, an image) is the unit of resampling.
    """

    groups: int
    batches: Callable[[str], Iterable[tuple[Tensor, Tensor]]]
    """Site name -> batches of (rows [R, n], group of each row [R], from 0); always the same ones."""
    features: KnownFeatures | None = None
    """What the rows were made from, where that is known."""


class ActivationSource(Protocol):
    """What a producer gets its rows from; the same everywhere, bit for bit."""

    @property
    def device(self) -> torch.device:
        """Where SAEs are evaluated."""

    @property
    def max_norm(self) -> float | None:
        """Rows whose norm exceeds so many times the median take no part, as `DatasetSettings.max_norm`."""

    def block(self, block: int, sites: Sequence[str]) -> Iterator[RowBatch]:
        """The rows of a block at `sites`, in an order that does not depend on the sites."""

    def heldout(self) -> HeldOutContexts | HeldOutRows:
        """What SAEs are evaluated on, which says whether they can be spliced and what the unit of resampling is."""


class SourceSpec(Protocol):
    """A source as it travels to the processes of producers."""

    def open(self) -> ActivationSource:
        """Makes it available in this process.

        Raises:
            UserError: it cannot be had, a model cannot be loaded say.
        """
