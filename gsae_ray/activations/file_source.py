"""Activations on disk, as a source of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsae_ray.activation_files.held_out import evaluated, held_out_by_hash
from gsae_ray.activation_files.opened import FilesOfRows, OpenRows
from gsae_ray.activation_files.order import RowOrder
from gsae_ray.activations.language_model_source import load_causal
from gsae_ray.config.sections import ModelSettings
from gsae_ray.data.tokens import kept_mask
from gsae_ray.errors import UserError
from gsae_ray.language_model.source import HeldOutContexts, HeldOutRows, RowBatch

BATCH_BYTES = 16 * 2**20
"""Rows of a site are read so many bytes at a time."""


@dataclasses.dataclass(frozen=True)
class CollectedOrder:
    """How activations were collected."""

    contexts: tuple[int, ...]
    """Contexts of each block."""
    batch: int
    """Contexts that were read at a time: so they are here, so that sums over rows are the same to the last bit."""


@dataclasses.dataclass(frozen=True)
class FileRows:
    """Which rows of files are trained on, in which order, and which are held out."""

    train: FilesOfRows
    heldout: FilesOfRows | None
    """None: `fraction` of the groups of `train`."""
    fraction: float
    sites: tuple[str, ...]
    seed: int
    """Of the data: groups are shuffled by it before they are cut into blocks."""
    as_they_lie: bool
    """Whether the groups were shuffled by this seed before they were written."""
    drawn: bool
    """Whether the groups of `heldout` were drawn before they were written."""
    heldout_tokens: int
    """Rows to evaluate on."""

    def __getstate__(self) -> dict[str, Any]:
        """What travels: each process opens the files for itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @cached_property
    def train_rows(self) -> OpenRows:
        """Those of the files; some groups may be held out."""
        return self.train.open(self.sites)

    @cached_property
    def heldout_rows(self) -> OpenRows:
        """Those of the files with held-out groups, among others."""
        return self.train_rows if self.heldout is None else self.heldout.open(self.sites)

    @cached_property
    def held_out_G(self) -> NDArray[Any]:
        """Which groups of `train_rows` are held out."""
        key_G = self.train_rows.groups.key_G
        return held_out_by_hash(key_G, self.fraction) if self.heldout is None else np.zeros(len(key_G), bool)

    def order(self, blocks: Sequence[int]) -> RowOrder:
        """The row stream, cut into blocks of so many rows."""
        taken_K = (~self.held_out_G).nonzero()[0]
        return RowOrder(self.train_rows.groups, taken_K, self.seed, blocks, self.as_they_lie)

    @cached_property
    def evaluated_K(self) -> NDArray[Any]:
        """The groups of `heldout_rows` that SAEs are evaluated on."""
        groups = self.heldout_rows.groups
        held_out_K = self.held_out_G.nonzero()[0] if self.heldout is None else np.arange(len(groups.rows_G))
        return evaluated(groups, held_out_K, self.heldout_tokens, self.drawn)

    @property
    def evaluated_rows(self) -> int:
        """How many rows these have."""
        return int(self.heldout_rows.groups.rows_G[self.evaluated_K].sum())

    def evaluated_tokens(self) -> Tensor | None:
        """Token ids [E, T] of the contexts that SAEs are evaluated on; None where there are none."""
        tokens_CT = self.heldout_rows.tokens()
        return None if tokens_CT is None else torch.from_numpy(tokens_CT[self.evaluated_K]).long()


@dataclasses.dataclass(frozen=True)
class SplicedModel:
    """A language model into which SAEs are spliced on the held-out contexts."""

    model: ModelSettings
    special_ids: tuple[int, ...]
    """Tokens that are no rows."""
    skip_positions: int
    """First positions of a context that are no rows."""
    batch: int
    """Contexts of a forward pass."""


@dataclasses.dataclass(frozen=True)
class FileSpec:
    """What a `FileSource` is made from, in any process that sees the files."""

    rows: FileRows
    blocks: tuple[int, ...]
    """Rows of each block."""
    collected: CollectedOrder | None
    """Of activations that are read in the blocks that they were collected in."""
    max_norm: float | None
    """As `DatasetSettings.max_norm`."""
    gpus: float
    """GPUs on which SAEs are evaluated, and the model runs."""
    spliced: SplicedModel | None
    """None: SAEs are evaluated on rows alone."""
    sizes: Mapping[str, int]
    """Path -> bytes of each file, when it was looked at."""

    def open(self) -> FileSource:
        """Opens the files.

        Raises:
            UserError: they are not there, or have changed; or the model cannot be loaded.
        """
        for name, size in self.sizes.items():
            path = Path(name)
            if not path.exists():
                raise UserError(f"activations.path: {path} is not there; producers need the files on their nodes, too")
            if path.stat().st_size != size:
                raise UserError(f"activations.path: {path} has changed while the sweep began; start it again")
        return FileSource(self)


class FileSource:
    """Activations on disk, in one process; see `ActivationSource`."""

    def __init__(self, spec: FileSpec) -> None:
        self.spec = spec
        self.rows = spec.rows
        self.max_norm = spec.max_norm
        self._order = spec.rows.order(spec.blocks)
        self._contexts: HeldOutContexts | None = None
        self.device = torch.device("cuda" if spec.gpus else "cpu")
        if (spliced := spec.spliced) is not None:
            tokens_ET = self.rows.evaluated_tokens()
            assert tokens_ET is not None, "so it was seen before"
            model = load_causal(spliced.model, spec.gpus, tokens_ET)
            kept = partial(kept_mask, special_ids=spliced.special_ids, skip_positions=spliced.skip_positions)
            self._contexts, self.device = HeldOutContexts(model, tokens_ET, kept, spliced.batch), model.device

    def block(self, block: int, sites: Sequence[str]) -> Iterator[RowBatch]:
        """The block's rows, in the order of the files."""
        tables = self.rows.train_rows.tables
        rows = self._order.block(block)
        for index_R, position_R in zip(*(self._batches(block, array_R) for array_R in rows), strict=True):
            yield RowBatch({site: tables[site].take(index_R) for site in sites}, torch.from_numpy(position_R))

    def _batches(self, block: int, array_R: NDArray[Any]) -> list[NDArray[Any]]:
        collected, rows = self.spec.collected, self.rows.train_rows
        if collected is None or block >= len(collected.contexts):
            return _split(array_R, rows)
        first = sum(collected.contexts[:block])
        rows_C = rows.groups.rows_G[first : first + collected.contexts[block]]
        rows_B = np.add.reduceat(rows_C, np.arange(0, len(rows_C), collected.batch))
        return np.split(array_R, np.cumsum(rows_B)[:-1])

    def heldout(self) -> HeldOutContexts | HeldOutRows:
        """The held-out contexts, where there is a model; else rows."""
        if self._contexts is not None:
            return self._contexts
        rows = self.rows
        _, group_K = np.unique(rows.heldout_rows.groups.key_G[rows.evaluated_K], return_inverse=True)
        return HeldOutRows(int(group_K.max()) + 1, partial(self._heldout_batches, group_K))

    def _heldout_batches(self, group_K: NDArray[Any], site: str) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self.rows.heldout_rows
        index_R = rows.groups.locate(self.rows.evaluated_K).index_R
        group_R = np.repeat(group_K, rows.groups.rows_G[self.rows.evaluated_K])
        for index, group in zip(*(_split(array_R, rows) for array_R in (index_R, group_R)), strict=True):
            yield rows.tables[site].take(index), torch.from_numpy(group)


def _split(array_R: NDArray[Any], rows: OpenRows) -> list[NDArray[Any]]:
    size = max(1, BATCH_BYTES // max(table.row_bytes for table in rows.tables.values()))
    return np.split(array_R, range(size, len(array_R), size))
