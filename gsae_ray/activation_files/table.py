"""Rows on disk as one table: memory-mapped arrays, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsae_ray.errors import UserError

DTYPES = {"float64": "float32", "float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
"""Dtype in files -> dtype of the rows that are read from them."""


class Part(NamedTuple):
    """Some rows of a file."""

    path: Path
    rows_Rn: NDArray[Any]
    """Memory-mapped; bfloat16, which numpy lacks, as an int16 view."""
    dtype: str
    """In the file: a key of `DTYPES`."""
    column: str
    """Their name in it."""


class RowTable:
    """The rows of one site. Nothing is in memory but what is asked for."""

    def __init__(self, parts: Sequence[Part], key: str, dtype: str | None = None) -> None:
        """Puts parts one after the other.

        Args:
            parts: at least one.
            key: of the sweep file, where they are named.
            dtype: of the rows that are read, where it is not that of `DTYPES`.

        Raises:
            UserError: they differ in width or dtype, or there are no rows, or no numbers in them.
        """
        self.parts = tuple(part for part in parts if len(part.rows_Rn))
        if not self.parts:
            raise UserError(f"{key}: there are no rows in {parts[0].path}")
        first = self.parts[0]
        for part in self.parts:
            for what, own, other in (
                ("width", f"{part.rows_Rn.shape[1]} wide", f"{first.rows_Rn.shape[1]} wide"),
                ("dtype", part.dtype, first.dtype),
            ):
                if own != other:
                    raise UserError(
                        f"{key}: rows are {other} in {first.path.name}, {own} in {part.path.name}; give files of one "
                        f"{what}"
                    )
        self.width = first.rows_Rn.shape[1]
        if not self.width:
            raise UserError(f"{key}: rows are 0 wide in {first.path.name}; give rows of numbers")
        self._stored = getattr(torch, first.dtype)
        self.dtype = dtype or DTYPES[first.dtype]
        self.starts = np.cumsum([0, *(len(part.rows_Rn) for part in self.parts)])
        """The row of the table at which each part starts; one more than there are parts."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is read."""
        return self.width * getattr(torch, self.dtype).itemsize

    def take(self, index_R: NDArray[Any]) -> Tensor:
        """Rows [R, n], as memory of the caller's own.

        Args:
            index_R: of the rows, ascending.
        """
        x_Rn = torch.empty(len(index_R), self.width, dtype=self._stored)
        array = x_Rn.view(torch.int16).numpy() if x_Rn.dtype == torch.bfloat16 else x_Rn.numpy()
        edges = np.searchsorted(index_R, self.starts)
        for number in np.diff(edges).nonzero()[0]:
            rows = slice(edges[number], edges[number + 1])
            array[rows] = self.parts[number].rows_Rn[index_R[rows] - self.starts[number]]
        return x_Rn.to(getattr(torch, self.dtype))


def finite_rows(rows_Rn: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows [R] are finite, also as float32, which float64 is read as."""
    if rows_Rn.dtype == np.float64:
        finite_R: NDArray[np.bool_] = (np.abs(rows_Rn) <= np.finfo(np.float32).max).all(1)  # not of NaN
        return finite_R
    return np.isfinite(rows_Rn).all(1)
