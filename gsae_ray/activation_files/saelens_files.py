"""Rows in SAELens' cache of activations: an Arrow data set of contexts, by SAELens itself or by `gsae-ray collect`.

A column of the hook's name holds [context, width] an example, `token_ids` the tokens. The files are read by pyarrow: a
producer does without `datasets`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsae_ray.activation_files.find import INFO_FILE, STATE_FILE
from gsae_ray.activation_files.table import DTYPES, Part, RowTable
from gsae_ray.errors import UserError, first_line, suggest

TOKENS, KEPT = "token_ids", "kept"


class CachedContexts(NamedTuple):
    """A data set of contexts."""

    table: RowTable
    """All positions of all contexts."""
    context_size: int
    files: tuple[Path, ...]

    @property
    def contexts(self) -> int:
        return len(self.table) // self.context_size


def open_cache(folder: Path, site: str, column: str | None, key: str) -> CachedContexts:
    """The activations of a hook, memory-mapped.

    Args:
        folder: of the data set.
        site: the name of the hook.
        column: another name of its column; default: the site's, else the only one.
        key: of the sweep file, where the folder is named.

    Raises:
        UserError: it is no such data set, or has no such column.
    """
    files, features = _read_info(folder, key)
    columns = [name for name, feature in features.items() if _is_rows(feature)]
    if column is not None and column not in columns:
        raise UserError(
            f"activations.column: {column!r} is no column of activations in {folder}; {suggest(column, columns)}"
        )
    name = column or (site if site in columns else columns[0] if len(columns) == 1 else None)
    if name is None:
        found = f"it has {len(columns)}: {', '.join(columns)}" if columns else f"it has {', '.join(features) or 'none'}"
        raise UserError(
            f"{key}: {folder} should have a column of activations (Array2D) named {site}; {found}"
            + (": name one with activations.column" if columns else "")
        )
    if name != site and column is None:
        raise UserError(
            f"{key}: the activations of {folder} are of the hook {name!r}, and the sweep's site is {site}; name that "
            f"site, or say that this column is it: activations.column: {name}"
        )
    context_size, width = features[name]["shape"]
    parts = [part for path in files for part in _parts(path, name, context_size, width, key)]
    if not parts:
        raise UserError(f"{key}: {folder} has no contexts")
    return CachedContexts(RowTable(parts, key), context_size, tuple(files))


def files_of_cache(folder: Path, key: str) -> list[Path]:
    """All files of a data set.

    Raises:
        UserError: it is none.
    """
    files, _ = _read_info(folder, key)
    return [*files, folder / STATE_FILE, folder / INFO_FILE]


def read_tokens(cache: CachedContexts, key: str) -> NDArray[Any] | None:
    """Token ids [C, T] of all contexts; None where the data set has none."""
    found = []
    for path in cache.files:
        table = _table(path, key)
        if TOKENS not in table.column_names:
            return None
        found += [_values(chunk, 1).reshape(-1, cache.context_size) for chunk in table.column(TOKENS).chunks]
    return np.concatenate(found)


def read_kept(cache: CachedContexts, key: str) -> NDArray[np.bool_]:
    """Which positions of the contexts are rows [C, T]: all, but in what `gsae-ray collect` has written."""
    found = []
    for path in cache.files:
        table = _table(path, key)
        if KEPT not in table.column_names:
            return np.ones((cache.contexts, cache.context_size), bool)
        for chunk in table.column(KEPT).chunks:
            found.append(chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, cache.context_size))
    return np.concatenate(found)


def _read_info(folder: Path, key: str) -> tuple[list[Path], dict[str, Any]]:
    """Files of a data set, and its columns."""
    try:
        state, info = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (STATE_FILE, INFO_FILE))
        files = [folder / file["filename"] for file in state["_data_files"]]
        features = dict(info["features"])
    except FileNotFoundError as error:
        raise UserError(f"{key}: {error.filename} is missing, of a data set as `save_to_disk` writes it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{key}: {STATE_FILE} or {INFO_FILE} of {folder} is not as `save_to_disk` writes it") from error
    return files, features


def _is_rows(feature: Any) -> bool:
    return (
        isinstance(feature, dict)
        and feature.get("_type") == "Array2D"
        and feature.get("dtype") in DTYPES
        and isinstance(feature.get("shape"), list)
        and all(isinstance(size, int) for size in feature["shape"])
    )


def _table(path: Path, key: str) -> pa.Table:
    """An Arrow file; what is not looked at stays on disk."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {path} cannot be read as Arrow: {first_line(error)}") from error


def _parts(path: Path, column: str, context_size: int, width: int, key: str) -> list[Part]:
    parts = []
    for chunk in _table(path, key).column(column).chunks:
        values = _values(chunk, 2)
        if len(values) != len(chunk) * context_size * width:
            raise UserError(f"{key}: column {column!r} of {path} has contexts that are not [{context_size}, {width}]")
        if len(values):
            parts.append(Part(path, values.reshape(-1, width), str(values.dtype), column))
    return parts


def _values(chunk: pa.Array, depth: int) -> NDArray[Any]:
    """What stands in lists of lists, one after the other, without a copy."""
    storage = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
    for _ in range(depth):
        storage = storage.flatten()
    return storage.to_numpy(zero_copy_only=True)
