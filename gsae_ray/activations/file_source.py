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
class FileSpec:
    """What a `FileSource` is made from, in any process that sees the files."""

    train: FilesOfRows
    heldout: FilesOfRows | None
    """None: `fraction` of the groups of `train`."""
    fraction: float
    sites: tuple[str, ...]
    blocks: tuple[int, ...]
    """Rows of each block."""
    seed: int
    """Of the data: groups are shuffled by it before they are cut into blocks."""
    collected: CollectedOrder | None
    """Of activations that were shuffled by this seed when they were collected: they are read as they lie."""
    heldout_tokens: int
    """Rows to evaluate on."""
    max_norm: float | None
    """As `DatasetSettings.max_norm`."""
    gpus: float
    """GPUs on which SAEs are evaluated, and the model runs."""
    model: ModelSettings | None
    """Into which SAEs are spliced; None: rows are all that there is."""
    evaluation_batch: int
    """Contexts of a forward pass of an evaluation."""
    special_ids: tuple[int, ...]
    """Tokens that are no rows."""
    skip_positions: int
    """First positions of a context that are no rows."""
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


@dataclasses.dataclass(frozen=True)
class CollectedOrder:
    """How activations were collected."""

    contexts: tuple[int, ...]
    """Contexts of each block."""
    batch: int
    """Contexts that were read at a time: so they are here, so that sums over rows are the same to the last bit."""


class FileSource:
    """Activations on disk, in one process; see `ActivationSource`."""

    def __init__(self, spec: FileSpec) -> None:
        self.spec = spec
        self.max_norm = spec.max_norm
        self._train = spec.train.open(spec.sites)
        self._heldout = self._train if spec.heldout is None else spec.heldout.open(spec.sites)
        taken_K, self._held_out_K = (np.arange(len(of.groups.rows_G)) for of in (self._train, self._heldout))
        if spec.heldout is None:
            held_out_G = held_out_by_hash(self._train.groups.key_G, spec.fraction)
            taken_K, self._held_out_K = (~held_out_G).nonzero()[0], held_out_G.nonzero()[0]
        self._order = RowOrder(self._train.groups, taken_K, spec.seed, spec.blocks, spec.collected is not None)
        self.model = None if spec.model is None else load_causal(spec.model, spec.gpus, self._heldout_tokens()[:1])
        self.device = torch.device("cuda" if spec.gpus else "cpu") if self.model is None else self.model.device

    @property
    def rows_a_pass(self) -> int:
        """Training rows that there are."""
        return self._order.rows_a_pass

    @cached_property
    def evaluated_K(self) -> NDArray[Any]:
        """The held-out groups that SAEs are evaluated on."""
        spec = self.spec
        return evaluated(self._heldout.groups, self._held_out_K, spec.heldout_tokens, spec.collected is not None)

    @property
    def heldout_rows(self) -> int:
        """Rows that SAEs are evaluated on."""
        return int(self._heldout.groups.rows_G[self.evaluated_K].sum())

    def block(self, block: int, sites: Sequence[str]) -> Iterator[RowBatch]:
        """The block's rows, in the order of the files."""
        rows = self._order.block(block)
        for index_R, position_R in zip(*(self._batches(block, array_R) for array_R in rows), strict=True):
            yield RowBatch(
                {site: self._train.tables[site].take(index_R) for site in sites}, torch.from_numpy(position_R)
            )

    def _batches(self, block: int, array_R: NDArray[Any]) -> list[NDArray[Any]]:
        collected = self.spec.collected
        if collected is None or block >= len(collected.contexts):
            return _split(array_R, self._train)
        first = sum(collected.contexts[:block])
        rows_C = self._train.groups.rows_G[first : first + collected.contexts[block]]
        rows_B = np.add.reduceat(rows_C, np.arange(0, len(rows_C), collected.batch))
        return np.split(array_R, np.cumsum(rows_B)[:-1])

    def heldout(self) -> HeldOutContexts | HeldOutRows:
        """The held-out contexts, where there is a model; else rows."""
        spec = self.spec
        if self.model is not None:
            kept = partial(kept_mask, special_ids=spec.special_ids, skip_positions=spec.skip_positions)
            return HeldOutContexts(self.model, self._heldout_tokens(), kept, spec.evaluation_batch)
        _, group_K = np.unique(self._heldout.groups.key_G[self.evaluated_K], return_inverse=True)
        return HeldOutRows(int(group_K.max()) + 1, partial(self._heldout_batches, group_K))

    def _heldout_batches(self, group_K: NDArray[Any], site: str) -> Iterator[tuple[Tensor, Tensor]]:
        groups, evaluated_K = self._heldout.groups, self.evaluated_K
        index_R = groups.locate(evaluated_K).index_R
        group_R = np.repeat(group_K, groups.rows_G[evaluated_K])
        for index, group in zip(*(_split(array_R, self._heldout) for array_R in (index_R, group_R)), strict=True):
            yield self._heldout.tables[site].take(index), torch.from_numpy(group)

    def _heldout_tokens(self) -> Tensor:
        tokens_CT = self._heldout.tokens()
        if tokens_CT is None:
            raise UserError("model: these activations have no token ids for a model to read; leave model out")
        return torch.from_numpy(tokens_CT[self.evaluated_K]).long()


def _split(array_R: NDArray[Any], rows: OpenRows) -> list[NDArray[Any]]:
    size = max(1, BATCH_BYTES // max(table.row_bytes for table in rows.tables.values()))
    return np.split(array_R, range(size, len(array_R), size))
