"""A data set of local files: its fingerprints, and its documents, in each format that we read."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow.parquet

from gsae_ray.builtin import TEXT_FILES
from gsae_ray.config.sections import DatasetSettings
from gsae_ray.data.column import Column
from gsae_ray.data.local_files import LOCAL_FORMATS, by_split, files_below, format_of, matching, named, saved_splits
from gsae_ray.errors import UserError, first_line, suggest
from gsae_ray.files import digest, file_hash


@dataclasses.dataclass(frozen=True)
class LocalData:
    """A data set of local files, by split. Its identity is their contents, not where or since when they lie there."""

    name: str
    kind: str
    """A value of LOCAL_FORMATS, or `saved`: written by `save_to_disk`."""
    splits: Mapping[str, tuple[Path, ...]]
    left_out: tuple[Path, ...] = ()
    """Files that belong to no split."""
    _hashes: dict[Path, str] = dataclasses.field(default_factory=dict, compare=False)

    def files(self, split: str, key: str) -> tuple[Path, ...]:
        """The files of a split; `key` is where the sweep file names it.

        Raises:
            UserError: there is no such split.
        """
        if split not in self.splits:
            what = "the built-in text" if self.name == "builtin" else repr(self.name)
            raise UserError(f"{key}: {what} has no split {split!r}; {suggest(split, self.splits)}")
        return self.splits[split]

    def fingerprint(self, split: str, key: str) -> str:
        """Hash of the contents of a split's files, in their order."""
        files = self.files(split, key)
        for path in files:
            if path not in self._hashes:
                self._hashes[path] = file_hash(path)
        return digest([self._hashes[path] for path in files])

    def load(self, split: str, column: Column, key: str) -> datasets.Dataset | datasets.IterableDataset:
        """The rows of a split, file after file.

        Raises:
            UserError: there is no such split, or it cannot be read.
        """
        datasets.disable_progress_bars()
        try:
            return self._read(split, column, key)
        except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, StopIteration) as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            reason = (str(error.__cause__ or error).strip() or "it is empty").splitlines()[0]
            raise UserError(f"dataset.name: {self.name!r} cannot be read: {reason}") from error

    def _read(self, split: str, column: Column, key: str) -> datasets.Dataset:
        paths = [str(path) for path in self.files(split, key)]
        contents = digest([self.kind, *dataclasses.astuple(column), self.fingerprint(split, key)])
        cache = cache_of(contents)
        # Not load_dataset, which sends a request to count the use of its reader.
        if self.kind == "text":  # one document is one file, not one line
            if column.name != "text":
                raise column.missing(["text"])
            return datasets.Dataset.from_text(paths, sample_by="document", cache_dir=cache)
        if self.kind == "json":
            value = datasets.Value("string") if column.is_text else datasets.List(datasets.Value("int64"))
            features = datasets.Features(dict.fromkeys(column.wanted, value))
            rows = partial(_json_rows, self.splits[split], column)
            return datasets.Dataset.from_generator(rows, features, cache_dir=cache, fingerprint=contents)
        if self.kind == "parquet":
            return datasets.Dataset.from_parquet(paths, columns=_parquet_columns(paths, column), cache_dir=cache)
        try:
            saved = datasets.load_from_disk(str(Path(paths[0]).parent))
        except (KeyError, TypeError, AttributeError):
            raise ValueError("its state.json or dataset_info.json is not as save_to_disk writes it") from None
        return saved.with_format(None)  # it may have been saved as one that hands out tensors, or some of its columns

    def place(self, split: str, row: int | None) -> str:
        """File and row, from 0, of a row of a split."""
        files = self.splits[split]
        assert row is not None  # what lies here is not streamed
        for path in files if self.kind == "parquet" else ():
            rows = pyarrow.parquet.read_metadata(path).num_rows
            if row < rows:
                return f"{path.name}, row {row}"
            row -= rows
        return f"{files[0].name}, row {row}" if len(files) == 1 else f"row {row}"

    def notice(self, split: str) -> str | None:
        """A line on which files are taken, where there is a choice; else None."""
        files = self.splits.get(split, ())
        others = [f"{name} ({len(paths)})" for name, paths in self.splits.items() if name != split]
        if self.name == "builtin" or len(files) + len(others) + len(self.left_out) < 2:
            return None
        line = f"dataset: trains on split {split!r}, {named(files)}"
        if others:
            line += f"; other splits (files), for evaluation.split: {', '.join(others)}"
        return line + (f"; of no split: {named(self.left_out)}" if self.left_out else "")


def cache_of(contents: str) -> str:
    """The folder where `datasets` keeps what it makes of files with this hash.

    Its own cache tells files apart by path and time stamp.
    """
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "by_contents" / contents[:32])


def find_local_data(dataset: DatasetSettings) -> LocalData | None:
    """The data set, if it is local files in formats that we read.

    Raises:
        UserError: no file matches, files are of several kinds, or a file is of two splits.
    """
    name = dataset.name

    def whole(kind: str, splits: Mapping[str, tuple[Path, ...]]) -> LocalData:
        if dataset.data_files:
            raise UserError(f"dataset.data_files: patterns are for a folder of files or the hub; {name!r} is neither")
        return LocalData(name, kind, splits)

    if name == "builtin":
        return whole("parquet", {split: (path,) for split, path in TEXT_FILES.items()})
    path = Path(name).expanduser()
    if any(c in name for c in "*?["):
        base, files = matching(path)
    elif path.is_dir():
        if saved := saved_splits(path):
            return whole("saved", saved)
        found = list(files_below(path))
        if not found:
            raise UserError(f"dataset.name: there are no files of data in the folder {name!r}")
        base, files = path, [file for file in found if format_of(file)]
    else:
        base, files = path.parent, [path] if path.is_file() else []
    if not files:
        if not path.is_dir() and (name.startswith((".", "/", "~")) or base != path.parent or format_of(path)):
            raise UserError(f"dataset.name: no file matches {name!r} (from {Path.cwd()})")
        return None
    kinds = {format_of(file) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise UserError(f"dataset.name: {name!r} should be files of one kind; known: {', '.join(LOCAL_FORMATS)}")
    if any(file.suffix == ".zst" for file in files) and importlib.util.find_spec("zstandard") is None:
        raise UserError(f"dataset.name: files of {name!r} are read with the package zstandard: pip install zstandard")
    if files == [path]:
        return whole(str(kinds.pop()), {"train": (path,)})
    splits = by_split(base, sorted(files), dataset.data_files)
    taken = {file for paths in splits.values() for file in paths}
    return LocalData(name, str(kinds.pop()), splits, tuple(sorted(set(files) - taken)))


def _parquet_columns(paths: Sequence[str], column: Column) -> list[str]:
    """The wanted columns that are in the files."""
    schemas = [pyarrow.parquet.read_schema(path) for path in paths]
    for path, schema in zip(paths, schemas, strict=True):
        if column.name not in schema.names:
            raise column.missing(schema.names)
        first, own = (s.field(column.name).type for s in (schemas[0], schema))
        if _is_ids(first) and not _is_ids(own):  # and would be cast: booleans, say, to 0 and 1
            raise UserError(f"{column.key}: {column.name!r} is {own} in {Path(path).name}, not a list of token ids")
    return [name for name in column.wanted if name in schemas[0].names]


def _is_ids(kind: pyarrow.DataType) -> bool:
    return hasattr(kind, "value_type") and pyarrow.types.is_integer(kind.value_type)


def _json_rows(files: Sequence[Path], column: Column) -> Iterator[dict[str, Any]]:
    """The rows of JSON files with the wanted columns alone: others may differ from file to file and row to row."""
    first: Mapping[str, Any] = {}
    found = False
    for path in files:
        for row, example in enumerate(_json_values(path)):
            where = f"{path.name}, row {row}"
            if not isinstance(example, dict):
                example = {"text": example}  # a list of strings is one of documents
            column.check(example, lambda where=where: where)  # type: ignore[misc]
            first, found = first or example, found or column.name in example
            yield {name: example.get(name) for name in column.wanted}
    if not first:
        raise UserError(f"dataset.name: there is nothing in {named(files)}")
    if not found:
        raise column.missing(first)


def _json_values(path: Path) -> Iterator[Any]:
    """The lines of a JSONL file, or the items of a JSON list."""
    row = 0
    try:
        with fsspec.open(str(path), "rt", compression="infer", encoding="utf-8-sig") as file:
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            if start == "[":
                yield from json.loads(start + file.read())
                return
            for line in itertools.chain([start + file.readline()], file):
                if line.strip():
                    yield json.loads(line)
                    row += 1
    except (ValueError, RecursionError) as error:
        raise UserError(f"dataset.name: {path.name}, row {row} is no JSON: {first_line(error)}") from error
