"""The schema of collected activations: what lies in the folder that `gsae-ray collect` writes.

schema.json                               `Schema`, sealed; without it the folder is not finished
{split}/contexts/{block}.safetensors      `tokens` int32 [S, T], -1 after the last token of a short context; `kept` bool
                                          [S, T]: which positions are rows
{split}/{site}/{block}-{part}.safetensors `activations` [R, n], layout `safetensors`: the rows of the kept positions
{split}/{site}/{block}-{part}.arrow       layout `saelens`: a context an example, all of its positions

Split is `train` or `heldout`, which is one block. Parts of a block follow each other. Rows stand in the order of the
contexts, within each in that of its positions: row r of a block is the r-th kept position of its contexts, read line by
line. A context is the group that a row belongs to. Trials see a block in another order: row r in the files is their row
P[r], P being `numpy.random.RandomState([seed, block]).permutation(rows)`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor
from typing_extensions import TypedDict

from gsae_ray.files import JSONFile
from gsae_ray.names import folder_name

FORMAT = "gsae-activations-1"
SCHEMA_FILE = "schema.json"
CONTEXTS = "contexts"
ROWS = "activations"
"""Name of the tensor in a file of rows."""
TRAIN, HELDOUT = "train", "heldout"
CollectedLayout = Literal["safetensors", "saelens"]


class SiteSchema(TypedDict):
    """A site."""

    width: int
    folder: str
    """Its folder's name in each split."""
    column: str
    """Its column in layout `saelens`: the name of the hook there."""
    module: str | None
    """The same place by the path of a module of transformers, with its side; None where that is not known."""


class SplitSchema(TypedDict):
    """The training rows, or the held-out ones."""

    contexts: list[int]
    """Contexts of each block."""
    rows: list[int]
    """Rows of each block."""
    batch: int
    """Contexts of a forward pass. Who sums over rows by as many has the same sums, to the last bit."""


class Forward(TypedDict):
    """What else of the forward passes the last bits depend on."""

    threads: int
    gpu: bool


class Description(TypedDict):
    """All that decides what is written."""

    format: str
    layout: CollectedLayout
    model: dict[str, Any]
    """The section of the sweep file, as SAEs that are trained on these activations keep it."""
    dataset: dict[str, Any]
    """The same."""
    model_fingerprint: str
    train_fingerprint: str
    """Of the training contexts: a hash of data, tokenizer and settings."""
    heldout_fingerprint: str
    dtype: str
    """Of the rows."""
    stored_dtype: str
    """In the files: float32 for bfloat16 in layout `saelens`, since Arrow has none."""
    context_size: int
    special_ids: list[int]
    """Tokens whose positions are not kept."""
    skip_positions: int
    """So many first positions of a context are not kept."""
    seed: int
    """Of the data: documents are shuffled by it before they are packed into contexts, and rows within blocks."""
    sites: dict[str, SiteSchema]
    train: SplitSchema
    heldout: SplitSchema
    forward: Forward


def splits(description: Description) -> dict[str, SplitSchema]:
    """The training rows and the held-out ones."""
    return {TRAIN: description["train"], HELDOUT: description["heldout"]}


class FileSchema(TypedDict):
    """A file."""

    bytes: int
    sha256: str


class Schema(Description):
    """`schema.json`."""

    machines: list[str]
    """The kinds of machines that it was collected on; rows of another kind may have other last bits."""
    files: dict[str, FileSchema]
    """Path within the folder -> the file."""


SCHEMA = JSONFile(Schema, "collect these activations again", sealed=True)


@dataclasses.dataclass(frozen=True)
class Contexts:
    """The contexts of a block."""

    tokens_ST: Tensor
    """Token ids, and PADDING after the last one of a short context."""
    kept_ST: Tensor
    """Which positions are rows."""

    def encode(self) -> bytes:
        """The file's contents."""
        tensors = {"tokens": self.tokens_ST.to(torch.int32).contiguous(), "kept": self.kept_ST.contiguous()}
        return safetensors.torch.save(tensors)

    @classmethod
    def decode(cls, data: bytes) -> Contexts:
        """The inverse of `encode`."""
        tensors = safetensors.torch.load(data)
        return cls(tensors["tokens"].long(), tensors["kept"])


def contexts_path(split: str, block: int) -> str:
    """Path of a block's contexts within the folder."""
    return f"{split}/{CONTEXTS}/{block:05d}.safetensors"


def rows_path(split: str, site: SiteSchema, block: int, part: int, layout: CollectedLayout) -> str:
    """Path of a part of a block at a site within the folder."""
    ending = "safetensors" if layout == "safetensors" else "arrow"
    return f"{split}/{site['folder']}/{block:05d}-{part:05d}.{ending}"


def site_schema(name: str, width: int, column: str, module: str | None) -> SiteSchema:
    """A site's entry."""
    return SiteSchema(width=width, folder=folder_name(name), column=column, module=module)
