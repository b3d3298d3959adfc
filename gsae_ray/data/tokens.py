"""Prepared tokens on disk: blocks of training contexts, and held-out contexts, from which any block is read again.

A prepared data set is a folder with `block-00000.safetensors` … (`tokens`, int32 [S, T], PADDING after the last token
of a short context) and a `manifest.json` with their rows and hashes; the held-out contexts are a folder of their own.
Each is a function of the data, the tokenizer and the settings that are hashed into its name, and of nothing else: one
that is damaged is made again (see `prepare`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from typing_extensions import TypedDict

from gsae_ray.errors import DamagedError
from gsae_ray.files import JSONFile

PADDING = -1
"""Stands for a token id after a context that is shorter than the others: no row, no target, never read."""


def kept_mask(tokens_BT: Tensor, special_ids: Iterable[int], skip_positions: int) -> Tensor:
    """Which positions [B, T] are rows: those that training, splicing and zero-ablation all use.

    Args:
        tokens_BT: token ids, and PADDING.
        special_ids: tokens that are no rows.
        skip_positions: how many first positions of a context are no rows.
    """
    kept_BT = ~torch.isin(tokens_BT, torch.tensor(sorted(special_ids), dtype=tokens_BT.dtype, device=tokens_BT.device))
    kept_BT[:, :skip_positions] = False
    return kept_BT & (tokens_BT != PADDING)


def model_input(tokens_BT: Tensor) -> Tensor:
    """Token ids [B, T] that the model can read: any token in place of PADDING, after which no row comes."""
    return tokens_BT.clamp(min=0)


class Manifest(TypedDict):
    rows: list[int]
    hashes: dict[str, str]


MANIFEST = JSONFile(Manifest, "the same command with --resume makes them again", sealed=True)


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A prepared data set on disk: blocks of training contexts, and the held-out contexts."""

    blocks_directory: Path
    heldout_directory: Path
    rows: tuple[int, ...]
    """Kept positions of each block."""
    heldout_rows: int
    special_ids: tuple[int, ...]
    skip_positions: int
    prepends_bos: bool
    """Whether contexts were made to begin with BOS."""
    seed: int
    fingerprint: str
    """Hash of all that decides the training rows, but for the forward pass."""
    heldout_fingerprint: str
    """Hash of the held-out contexts and of which positions are rows."""
    hashes: Mapping[str, str]
    """File name -> hash of its content."""

    def block(self, index: int) -> Tensor:
        """Token ids [S, T] of a block's contexts, and PADDING.

        Raises:
            DamagedError: they are not as they were prepared.
        """
        return self._read(self.blocks_directory / f"block-{index:05d}.safetensors")

    def heldout(self) -> Tensor:
        """Token ids [E, T] of the held-out contexts, and PADDING.

        Raises:
            DamagedError: as `block`.
        """
        return self._read(self.heldout_directory / "heldout.safetensors")

    def _read(self, path: Path) -> Tensor:
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != self.hashes[path.name]:
            raise DamagedError(f"{path}: these tokens are damaged; {MANIFEST.remedy}")
        return safetensors.torch.load(data)["tokens"].long()

    def kept(self, tokens_BT: Tensor) -> Tensor:
        """Which positions are rows [B, T]."""
        return kept_mask(tokens_BT, self.special_ids, self.skip_positions)
