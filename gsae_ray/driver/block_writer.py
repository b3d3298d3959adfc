"""Writes blocks of activations in one of the layouts of `gsae_ray.activation_files.schema`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import torch
from safetensors.torch import save
from torch import Tensor

from gsae_ray.activation_files.collection import Collection
from gsae_ray.activation_files.schema import HELDOUT, ROWS, Contexts, SiteSchema, contexts_path, rows_path, splits
from gsae_ray.activations.language_model_source import LanguageModelSource
from gsae_ray.activations.layout import DTYPE_BYTES
from gsae_ray.data.saelens_cache import features, write_contexts, write_data_set
from gsae_ray.errors import UserError, not_finite
from gsae_ray.files import digest, write_atomically

PART_BYTES = 256 * 2**20
"""A part of a block at a site is as large, or what one forward pass gives."""
BUFFER_BYTES = 2 * 2**30
"""Parts of all sites gather in memory; together they are as large."""


class BlockWriter:
    """Writes the parts of a block."""

    def __init__(self, collection: Collection, split: str, block: int) -> None:
        self.collection, self.split, self.block = collection, split, block
        self.names: list[str] = []
        """Of the files that are written."""
        self.description = description = collection.progress["description"]
        self.whole = description["layout"] == "saelens"
        widths = [site["width"] for site in description["sites"].values()]
        size = DTYPE_BYTES[description["stored_dtype"]]
        self.most_rows = min(PART_BYTES // (size * max(widths)), BUFFER_BYTES // (size * sum(widths)))
        self._parts = 0
        self._contexts: list[Contexts] = []
        self._rows: dict[str, list[Tensor]] = {site: [] for site in description["sites"]}

    def write(self, source: LanguageModelSource, contexts: Contexts) -> Iterator[int]:
        """Writes the rows of contexts, a forward pass a batch; yields how many rows of a batch are made.

        Raises:
            UserError: they are not finite.
        """
        file = contexts_path(self.split, self.block)
        write_atomically(self.collection.path(file), contexts.encode())
        self.names.append(file)
        batch = splits(self.description)[self.split]["batch"]
        gathered = 0
        for tokens_BT, kept_BT in zip(contexts.tokens_ST.split(batch), contexts.kept_ST.split(batch), strict=True):
            taken_BT = torch.ones_like(kept_BT) if self.whole else kept_BT
            rows = int(taken_BT.sum())
            if gathered and gathered + rows > self.most_rows:
                self._write_part()
                gathered = 0
            for site, x_Rn in source.rows(tokens_BT, taken_BT, list(self._rows)).rows.items():
                self._rows[site].append(self._checked(site, x_Rn.cpu()))
            self._contexts.append(Contexts(tokens_BT, kept_BT))
            gathered += rows
            yield int(kept_BT.sum())
        self._write_part()

    def _checked(self, site: str, x_Rn: Tensor) -> Tensor:
        if x_Rn.isfinite().all():
            return x_Rn
        where = "the held-out rows" if self.split == HELDOUT else f"block {self.block}"
        raise UserError(str(not_finite(f"activations at {site}", where, self.description["dtype"])))

    def _write_part(self) -> None:
        """Writes what has gathered."""
        layout, context = self.description["layout"], self.description["context_size"]
        for name, site in self.description["sites"].items():
            file = rows_path(self.split, site, self.block, self._parts, layout)
            path, x_Rn = self.collection.path(file), torch.cat(self._rows[name])
            if self.whole:
                tokens_CT = torch.cat([part.tokens_ST for part in self._contexts])
                kept_CT = torch.cat([part.kept_ST for part in self._contexts])
                x_CTn = x_Rn.unflatten(0, (-1, context))
                write_contexts(path, _columns(self.collection, site), x_CTn, tokens_CT, kept_CT)
            else:
                write_atomically(path, save({ROWS: x_Rn.contiguous()}))
            self._rows[name].clear()
            self.names.append(file)
        self._contexts.clear()
        self._parts += 1


def _columns(collection: Collection, site: SiteSchema) -> datasets.Features:
    description = collection.progress["description"]
    return features(site["column"], description["context_size"], site["width"], description["dtype"])


def finish_data_sets(collection: Collection) -> None:
    """Makes a data set of the files of each site, in each split."""
    description = collection.progress["description"]
    written = [name for files in collection.progress["blocks"].values() for name in files]
    names = []
    for split in splits(description):
        for site in description["sites"].values():
            place = f"{split}/{site['folder']}"
            files = [Path(name).name for name in written if name.startswith(f"{place}/") and name.endswith(".arrow")]
            key, folder = digest([description, split, site]), collection.folder / place
            made = write_data_set(folder, _columns(collection, site), sorted(files), key)
            names += [f"{place}/{name}" for name in made]
    collection.add("data sets", names)
