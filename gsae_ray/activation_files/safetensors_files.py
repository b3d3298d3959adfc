"""Rows in safetensors files: of each the one 2-D tensor of floats, or the one that is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gsae_ray.activation_files.table import DTYPES, Part, RowTable
from gsae_ray.errors import UserError, first_line, suggest

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_tables(files: Sequence[Path], sites: Sequence[str], column: str | None, key: str) -> dict[str, RowTable]:
    """The rows of each site, memory-mapped.

    Args:
        files: in the order of their rows.
        sites: names of sites.
        column: the tensor's name; default: the site's, else the only one of rows.
        key: of the sweep file, where the files are named.

    Raises:
        UserError: a file is damaged or has no such tensor, or files differ in width or dtype.
    """
    parts: dict[str, list[Part]] = {site: [] for site in sites}
    for path in files:
        for site, name in _tensors(path, sites, column, key).items():
            parts[site].append(_part(path, name, key))
    return {site: RowTable(found, key) for site, found in parts.items()}


def read_keys(files: Sequence[Path], name: str, table: RowTable, key: str) -> NDArray[Any]:
    """The group of each row, which a 1-D tensor of whole numbers beside the rows tells.

    Raises:
        UserError: it is not there, or is something else.
    """
    keys = []
    for path in files:
        with _opened(path, key) as file:
            if name not in file.keys():  # noqa: SIM118
                raise UserError(
                    f"activations.group_column: no tensor {name!r} in {path.name}; {suggest(name, file.keys())}"
                )
            keys.append(file.get_tensor(name).numpy())
            if keys[-1].ndim != 1 or keys[-1].dtype.kind not in "iu":
                raise UserError(f"activations.group_column: {name!r} in {path.name} is not one whole number a row")
            rows = sum(len(part.rows_Rn) for part in table.parts if part.path == path)
            if len(keys[-1]) != rows:
                raise UserError(
                    f"activations.group_column: {name!r} in {path.name} has {len(keys[-1]):,} numbers for {rows:,} rows"
                )
    return np.concatenate(keys)


def _opened(path: Path, key: str) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise UserError(f"{key}: {path} cannot be read as safetensors: {first_line(error)}") from error


def _tensors(path: Path, sites: Sequence[str], column: str | None, key: str) -> dict[str, str]:
    """Site -> the name of its tensor in a file."""
    with _opened(path, key) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        rows = [name for name, s in slices.items() if len(s.get_shape()) == 2 and s.get_dtype() in _DTYPES]
    if column is not None:
        if column not in rows:
            what = "is no 2-D tensor of floats" if column in slices else "is not there"
            raise UserError(f"activations.column: {column!r} {what} in {path.name}; {suggest(column, rows)}")
        return dict.fromkeys(sites, column)
    if all(site in rows for site in sites):
        return {site: site for site in sites}
    if len(sites) > 1:
        raise UserError(
            f"{key}: {path.name} should have a tensor named {sites[0]}, and so on for all {len(sites)} sites; it has "
            f"{', '.join(rows[:5]) or 'none of rows'}: sweep one site, or name them so"
        )
    if len(rows) != 1:
        found = f"{len(rows)} ({', '.join(rows[:5])}): name one with activations.column" if rows else "none"
        raise UserError(f"{key}: {path.name} should have one 2-D tensor of floats [rows, width]; it has {found}")
    return dict.fromkeys(sites, rows[0])


def _part(path: Path, name: str, key: str) -> Part:
    with _opened(path, key) as file:
        x_Rn = file.get_tensor(name)  # memory-mapped
    dtype = str(x_Rn.dtype).removeprefix("torch.")
    assert dtype in DTYPES
    return Part(path, x_Rn.view(torch.int16).numpy() if x_Rn.dtype == torch.bfloat16 else x_Rn.numpy(), dtype, name)
