"""Which files a local data set is made of, and of which split each is.

They go by Hugging Face's convention: `train`, `validation` or `test` in the name of a file or folder is its split (see
`datasets.data_files`), unless `dataset.data_files` says which are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datasets.data_files import FILES_TO_IGNORE, _get_data_files_patterns
from datasets.packaged_modules import _EXTENSION_TO_MODULE
from fsspec.utils import glob_translate

from gsae_ray.errors import UserError

LOCAL_FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
SUFFIXES = {*_EXTENSION_TO_MODULE, *COMPRESSIONS}
"""Endings of files that `datasets` can read."""
MOST_FILES = 1_000_000
"""The most files to look at below a folder, which takes seconds: more are a mistake, such as the whole disk."""


def format_of(path: Path) -> str | None:
    """The value of LOCAL_FORMATS that a file's name says; None for a file that we do not read."""
    name = Path(path.stem) if path.suffix in COMPRESSIONS else path
    kind = LOCAL_FORMATS.get(name.suffix)
    return None if kind == "parquet" and name != path else kind  # Parquet compresses by itself


def files_below(folder: Path) -> Iterator[Path]:
    """The files of data below a folder: as for `datasets`, not hidden ones, nor those that describe a data set."""
    if folder.resolve() == folder.resolve().parent:
        raise UserError(f"dataset.name: {str(folder)!r} is the whole disk; name a folder of data")
    seen = 0
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        seen += len(folders) + len(names)
        if seen > MOST_FILES:
            raise UserError(f"dataset.name: there are over {MOST_FILES:,} files below {str(folder)!r}; narrow it")
        paths = (Path(directory, name) for name in names if name[0] != "." and name not in FILES_TO_IGNORE)
        yield from (path for path in paths if path.suffix in SUFFIXES and path.is_file())  # a pipe never ends


def matching(pattern: Path) -> tuple[Path, list[Path]]:
    """The folder that a glob begins with, and the files that it matches."""
    first = next(i for i, part in enumerate(pattern.parts) if any(c in part for c in "*?["))
    base, rest = Path(*pattern.parts[:first]), pattern.parts[first:]
    if "**" in rest and base.resolve() == base.resolve().parent:
        raise UserError(f"dataset.name: {str(pattern)!r} is the whole disk; name a folder of data")
    return base, [path for path in base.glob("/".join(rest)) if path.is_file()]


def by_split(
    base: Path, files: Sequence[Path], patterns: Mapping[str, Sequence[str]] | None
) -> dict[str, tuple[Path, ...]]:
    """Split -> its files, by their names.

    Args:
        base: the folder that names and patterns are relative to.
        files: files below it.
        patterns: split -> patterns of its files; None for Hugging Face's convention.

    Raises:
        UserError: a pattern matches nothing, or a file is of two splits.
    """
    names = {file.relative_to(base).as_posix(): file for file in files}

    def resolve(pattern: str) -> list[str]:
        matching = re.compile(glob_translate(pattern)).match
        found = [name for name in names if matching(name)]
        if not found:
            raise FileNotFoundError(pattern)
        return found

    splits: dict[str, tuple[Path, ...]] = {}
    of: dict[str, str] = {}
    for split, wanted in (patterns or _get_data_files_patterns(resolve)).items():
        found: set[str] = set()
        for pattern in wanted:
            try:
                found.update(resolve(pattern))
            except (FileNotFoundError, ValueError):  # ** within a name
                if patterns:
                    raise UserError(
                        f"dataset.data_files.{split}: no file matches {pattern!r} in {str(base)!r}"
                    ) from None
        for name in sorted(found):
            if of.setdefault(name, split) != split:
                raise UserError(
                    f"dataset.data_files: {name} would be of two splits, {of[name]} and {split}; give the files of each"
                )
        splits[split] = tuple(file for name, file in names.items() if name in found)
    return splits


def saved_splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Split -> its files, in a folder that `save_to_disk` wrote; empty for any other folder."""

    def arrow(folder: Path) -> tuple[Path, ...]:
        return tuple(sorted(path for path in folder.glob("*.arrow") if not path.name.startswith("cache-")))

    if (folder / "dataset_dict.json").is_file():
        return {path.name: arrow(path) for path in sorted(folder.iterdir()) if (path / "state.json").is_file()}
    return {"train": arrow(folder)} if (folder / "state.json").is_file() and arrow(folder) else {}


def named(files: Sequence[Path]) -> str:
    """Some files in words: how many, and the names of the first."""
    names = ", ".join(path.name for path in files[:3])
    return f"{len(files)} file{'s' if len(files) != 1 else ''} ({names}{', …' if len(files) > 3 else ''})"
