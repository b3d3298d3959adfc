"""Rows in Parquet files: a column of lists of floats, all of one length.

Parquet is compressed, so that a row cannot be had without its row group: it is unpacked once, to safetensors files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray

from gsae_ray.activation_files.schema import ROWS
from gsae_ray.activation_files.table import DTYPES, finite_rows
from gsae_ray.errors import UserError, first_line, suggest
from gsae_ray.files import write_atomically

KEYS = "keys"
"""Name of the tensor of groups, beside that of rows."""
PART_BYTES = 256 * 2**20
_READ_ROWS = 8192


def parquet_column(files: Sequence[Path], site: str, column: str | None, key: str) -> str:
    """The name of the column of rows; default: the site's, else the only one that holds lists of floats.

    Raises:
        UserError: a file is damaged, or there is no such column.
    """
    schema = _opened(files[0], key).schema_arrow
    lists = [field.name for field in schema if _is_floats(field.type)]
    name = column or (site if site in lists else lists[0] if len(lists) == 1 else None)
    if name is None:
        found = (
            f"it has {', '.join(lists)}: name one with activations.column"
            if lists
            else f"it has {', '.join(schema.names)}"
        )
        raise UserError(f"{key}: {files[0].name} should have one column of lists of floats; {found}")
    for path in files:
        schema = _opened(path, key).schema_arrow
        if name not in schema.names or not _is_floats(schema.field(name).type):
            what = f"is {schema.field(name).type}, no list of floats," if name in schema.names else "is not there"
            raise UserError(f"activations.column: {name!r} {what} in {path.name}; {suggest(name, lists)}")
    return name


def row_count(files: Sequence[Path], key: str) -> int:
    """Rows of all files."""
    return sum(_opened(path, key).metadata.num_rows for path in files)


def width_and_dtype(files: Sequence[Path], column: str, key: str) -> tuple[int, str]:
    """Width of the rows, by the first one, and dtype.

    Raises:
        UserError: there are no rows.
    """
    for path in files:
        for x_Rn, _ in _batches(path, column, None, key, 1):
            return x_Rn.shape[1], DTYPES[str(x_Rn.dtype)]
    raise UserError(f"{key}: there are no rows in {files[0]}")


def unpack(
    files: Sequence[Path], column: str, group_column: str | None, folder: Path, key: str, report: Callable[[int], None]
) -> None:
    """Writes rows, and the groups that they belong to, as safetensors files.

    Args:
        files: in the order of their rows.
        column: of the rows.
        group_column: of what tells groups apart: numbers or texts; None for none.
        folder: to write to.
        key: of the sweep file, where the files are named.
        report: called with how many rows are written.

    Raises:
        UserError: rows are of several widths, or missing.
    """
    done, part = 0, 0
    rows: list[NDArray[Any]] = []
    keys: list[NDArray[Any]] = []
    first: tuple[int, str] | None = None

    def write() -> None:
        nonlocal part
        tensors = {ROWS: np.concatenate(rows)} | ({KEYS: np.concatenate(keys)} if keys else {})
        write_atomically(folder / f"{part:05d}.safetensors", safetensors.numpy.save(tensors))
        part += 1
        rows.clear()
        keys.clear()

    for path in files:
        before = done
        for x_Rn, key_R in _batches(path, column, group_column, key, _READ_ROWS):
            own = x_Rn.shape[1], str(x_Rn.dtype)
            first = first or own
            if own != first:
                raise UserError(
                    f"{key}: rows are {first[0]} wide in {first[1]} at first, {own[0]} in {own[1]} in {path.name}; "
                    "give rows of one width and dtype"
                )
            if not (finite_R := finite_rows(x_Rn)).all():
                row = done - before + int(finite_R.argmin())
                raise UserError(
                    f"{key}: row {row:,} of {path.name} is not finite (NaN, infinite, or too large for float32); leave "
                    "such rows out"
                )
            rows.append(x_Rn.astype(DTYPES[own[1]], copy=False))
            if key_R is not None:
                keys.append(key_R)
            done += len(x_Rn)
            if sum(x.nbytes for x in rows) >= PART_BYTES:
                write()
            report(done)
    if rows:
        write()


def _batches(
    path: Path, column: str, group_column: str | None, key: str, size: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
    file = _opened(path, key)
    if group_column is not None and group_column not in file.schema_arrow.names:
        raise UserError(
            f"activations.group_column: {group_column!r} is not there in {path.name}; "
            f"{suggest(group_column, file.schema_arrow.names)}"
        )
    names = [column, *([group_column] if group_column else [])]
    done = 0
    for batch in file.iter_batches(size, columns=names):
        lists = batch.column(column)
        values = lists.flatten()
        if lists.null_count or values.null_count:
            raise UserError(f"{key}: a row of {path.name} is missing, or a number in it (null); leave such rows out")
        if not len(lists):
            continue
        width, left = divmod(len(values), len(lists))
        lengths = np.asarray(pa.compute.list_value_length(lists))
        if not lengths.any():
            raise UserError(f"{key}: rows are 0 wide in {path.name}; give rows of numbers")
        if left or not width or (lengths != width).any():
            row = done + int((lengths != lengths[0]).argmax())
            raise UserError(
                f"{key}: row {row:,} of {path.name} has {lengths[row - done]} numbers, those before it {lengths[0]}; "
                "give rows of one width"
            )
        groups = None
        if group_column is not None:
            if batch.column(group_column).null_count:
                raise UserError(
                    f"activations.group_column: {group_column!r} of a row of {path.name} is missing (null); give every "
                    "row its group"
                )
            groups = _keys(batch.column(group_column))
        yield values.to_numpy(zero_copy_only=False).reshape(-1, width), groups
        done += len(lists)


def _keys(column: pa.Array) -> NDArray[Any]:
    """A whole number for each value, the same for the same value."""
    hashed: NDArray[Any] = pd.util.hash_array(np.asarray(column.to_pandas()), categorize=True)
    return hashed.view(np.int64)


def _is_floats(kind: pa.DataType) -> bool:
    return hasattr(kind, "value_type") and pa.types.is_floating(kind.value_type)


def _opened(path: Path, key: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {path} cannot be read as Parquet: {first_line(error)}") from error
