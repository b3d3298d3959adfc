"""A look at all of the files, once: a hash of their contents, and whether every number is finite.

What was found is kept in storage. Files with the same paths, sizes and times of change are taken to be the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from typing_extensions import TypedDict

from gsae_ray.activation_files.table import Part, RowTable, finite_rows
from gsae_ray.errors import UserError
from gsae_ray.files import JSONFile, digest, file_hash

PIECE_BYTES = 64 * 2**20

Progress = Callable[[str, int, int], None]
"""Called with (what, done, needed)."""


class _Scan(TypedDict):
    """What was found in some files."""

    hashes: dict[str, str]
    """Path -> sha256."""


_SCAN = JSONFile(_Scan, "the files are looked at again", sealed=True)


def scan(
    files: Iterable[Path], tables: Mapping[str, RowTable], key: str, kept_in: Path, report: Progress
) -> dict[Path, str]:
    """Hashes files, and checks that the rows of `tables` are finite, unless that was done before.

    Args:
        files: all that decide the rows.
        tables: what to call them -> rows of these files.
        key: of the sweep file, where the files are named.
        kept_in: the folder for what is found.
        report: told of the progress.

    Returns:
        path -> sha256 of the contents.

    Raises:
        UserError: a number is NaN or infinite, or too large for float32.
    """
    paths = sorted({path.resolve() for path in files})
    stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    checked = sorted({(str(part.path), part.column, name) for name, table in tables.items() for part in table.parts})
    record = kept_in / f"{digest([stamps, checked])[:32]}.json"
    found = _SCAN.read_whole(record)
    if found is None:
        found = _Scan(hashes=_hashes(paths, report))
        for name, table in tables.items():
            _check_finite(name, table, key, report)
        kept_in.mkdir(parents=True, exist_ok=True)
        _SCAN.write(record, found)
    return {Path(name): sha256 for name, sha256 in found["hashes"].items()}


def _hashes(paths: Sequence[Path], report: Progress) -> dict[str, str]:
    found = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets other threads run
        for path, sha256 in zip(paths, pool.map(file_hash, paths), strict=True):
            found[str(path)] = sha256
            report("reading files of activations", len(found), len(paths))
    return found


def _check_finite(name: str, table: RowTable, key: str, report: Progress) -> None:
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (part, first, _), bad in _pairs(pool, list(_pieces(table))):
            done += 1
            report(f"looking for NaN at {name}", done, -(-len(table) * table.row_bytes // PIECE_BYTES))
            if bad is not None:
                pool.shutdown(cancel_futures=True)
                raise UserError(
                    f"{key}: row {first + bad:,} of {part.path.name} is not finite (NaN, infinite, or too large for "
                    f"float32), of {name}; leave such rows out"
                )


def _pairs(
    pool: ThreadPoolExecutor, pieces: list[tuple[Part, int, int]]
) -> Iterator[tuple[tuple[Part, int, int], int | None]]:
    return zip(
        pieces,
        pool.map(lambda piece: _not_finite(piece[0].rows_Rn[piece[1] : piece[2]], piece[0].dtype), pieces),
        strict=True,
    )


def _pieces(table: RowTable) -> Iterator[tuple[Part, int, int]]:
    """(part, first row, end) of pieces of a table."""
    size = max(1, PIECE_BYTES // table.row_bytes)
    for part in table.parts:
        yield from ((part, first, first + size) for first in range(0, len(part.rows_Rn), size))


def _not_finite(rows_Rn: NDArray[Any], dtype: str) -> int | None:
    """The first row that is not finite."""
    # Of bfloat16, as int16, all bits of the exponent are set.
    finite_R = (rows_Rn & 0x7F80 != 0x7F80).all(1) if dtype == "bfloat16" else finite_rows(rows_Rn)
    return None if finite_R.all() else int(finite_R.argmin())
