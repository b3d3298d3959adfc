"""Files made ready for producers: all of them looked at once, Parquet unpacked."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from typing_extensions import TypedDict

from gsae_ray.activation_files.collection import free_bytes
from gsae_ray.activation_files.opened import CollectedFiles, FilesOfRows, ForeignFiles
from gsae_ray.activation_files.parquet_files import row_count, unpack, width_and_dtype
from gsae_ray.activation_files.scan import Progress, scan
from gsae_ray.errors import UserError
from gsae_ray.files import JSONFile, digest, file_hash

BYTES = {"float32": 4, "float16": 2}
"""Of a number of a row that is unpacked."""


class Ready(NamedTuple):
    """Files that producers may open."""

    files: FilesOfRows
    hashes: tuple[str, ...]
    """sha256 of all files that decide the rows, those at other sites too, in the order of their rows."""
    sizes: Mapping[str, int]
    """Path -> bytes of each file that is read."""


class _Unpacked(TypedDict):
    """`manifest.json` of a folder of unpacked rows."""

    hashes: dict[str, str]


_UNPACKED = JSONFile(_Unpacked, "the same command unpacks them again", sealed=True)


def ready_collected(collected: CollectedFiles, sites: Sequence[str], kept_in: Path, report: Progress) -> Ready:
    """Checks that the files are as they were collected.

    Args:
        collected: a split.
        sites: that are read.
        kept_in: the folder for what is found.
        report: told of the progress.

    Raises:
        UserError: a file is missing, or is another.
    """
    needed = collected.needed(sites)
    if missing := next((path for path in needed if not path.is_file()), None):
        raise UserError(f"{collected.key}: {missing} is missing, of what was collected; collect again, or copy it anew")
    found = scan(needed, {}, collected.key, kept_in, report)
    for path, sha256 in needed.items():
        if found[path.resolve()] != sha256:
            raise UserError(f"{collected.key}: {path} is not as it was collected; collect again, or copy it anew")
    files = collected.schema()["files"]
    hashes = tuple(files[name]["sha256"] for name in sorted(files) if Path(name).parts[0] == collected.split)
    return Ready(collected, hashes, _sizes(needed))


def ready_foreign(foreign: ForeignFiles, sites: Sequence[str], kept_in: Path, report: Progress) -> Ready:
    """Hashes the files, checks that their rows are finite, and unpacks Parquet.

    Args:
        foreign: the files.
        sites: that are read.
        kept_in: the folder for what is found, and for rows that are unpacked.
        report: told of the progress.

    Raises:
        UserError: a row is not finite, or files do not fit together, or there is no room to unpack them.
    """
    paths = foreign.paths()
    if foreign.format != "parquet":
        found = scan(paths, foreign.open(sites).tables, foreign.key, kept_in, report)
        return Ready(foreign, tuple(found[path.resolve()] for path in paths), _sizes(paths))
    found = scan(paths, {}, foreign.key, kept_in, report)
    hashes = tuple(found[path.resolve()] for path in paths)
    assert foreign.column is not None, "so it was looked up"
    folder = kept_in / f"rows-{digest([hashes, foreign.column, foreign.group_column])[:16]}"
    manifest = _UNPACKED.read_whole(folder / "manifest.json")
    if manifest is None or not _whole(folder, manifest["hashes"], foreign.key, kept_in, report):
        _unpack(foreign, folder, report)
    files = dataclasses.replace(foreign, unpacked=folder)
    return Ready(files, hashes, _sizes(folder.glob("*.safetensors")))


def _whole(folder: Path, hashes: Mapping[str, str], key: str, kept_in: Path, report: Progress) -> bool:
    paths = [folder / name for name in hashes]
    if not all(path.is_file() for path in paths):
        return False
    return list(scan(paths, {}, key, kept_in, report).values()) == [hashes[path.name] for path in sorted(paths)]


def unpacked_bytes(foreign: ForeignFiles) -> int:
    """Bytes that the rows of Parquet files take in storage; 0 of other files, which stay where they are."""
    if foreign.format != "parquet":
        return 0
    assert foreign.column is not None, "so it was looked up"
    width, dtype = width_and_dtype(foreign.files, foreign.column, foreign.key)
    return row_count(foreign.files, foreign.key) * (width * BYTES[dtype] + (8 if foreign.group_column else 0))


def _unpack(foreign: ForeignFiles, folder: Path, report: Progress) -> None:
    assert foreign.column is not None
    rows, needed, free = row_count(foreign.files, foreign.key), unpacked_bytes(foreign), free_bytes(folder)
    if needed > free:
        raise UserError(
            f"{foreign.key}: Parquet is unpacked to storage, which takes {needed / 2**30:.2f} GiB, and "
            f"{free / 2**30:.2f} GiB are free there: make room, or take another --storage, or safetensors files"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        unpack(
            foreign.files,
            foreign.column,
            foreign.group_column,
            made,
            foreign.key,
            lambda done: report("unpacking Parquet", done, rows),
        )
        hashes = {path.name: file_hash(path) for path in sorted(made.iterdir())}
        _UNPACKED.write(made / "manifest.json", _Unpacked(hashes=hashes))
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        made.rename(folder)


def _sizes(paths: Iterable[Path]) -> dict[str, int]:
    return {str(path.resolve()): path.stat().st_size for path in paths}
