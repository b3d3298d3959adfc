"""Which features are on: how many of these decisions another form of an SAE takes otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gsae_ray.errors import UserError, first_line, shown
from gsae_ray.saes.base import SAE

ROWS_AT_ONCE = 4096


def read_rows(path: Path, d_in: int) -> Tensor:
    """The activations [rows, d_in] in an `.npy`, or in a safetensors file with one tensor.

    Raises:
        UserError: there are none; in one line that names `--rows`.
    """
    try:
        if path.suffix == ".npy":
            rows = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            (rows,) = safetensors.torch.load_file(path).values()
    except (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, safetensors.SafetensorError) as error:
        what = "an .npy, or safetensors with one tensor, of activations [rows, d_in]"
        raise UserError(f"--rows: {path} is not {what}: {shown(first_line(error), quoted=False)}") from error
    if rows.dim() != 2 or rows.shape[1] != d_in or not rows.is_floating_point():
        raise UserError(f"--rows: {path} has {list(rows.shape)} of {rows.dtype}, not activations [rows, {d_in}]")
    if not rows.isfinite().all():
        raise UserError(f"--rows: {path} has numbers that are not finite")
    return rows


@torch.no_grad()
def decisions_changed(sae: SAE, other: SAE, x_RD: Tensor) -> int:
    """Of rows × features, how many are on in one of two SAEs and off in the other."""
    parts = ((sae.encode(x) > 0) != (other.encode(x) > 0) for x in x_RD.split(ROWS_AT_ONCE))
    return sum(int(part.sum()) for part in parts)
