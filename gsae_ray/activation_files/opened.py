"""Activations of some sites on disk, opened: whichever files they are in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from gsae_ray.activation_files.find import Format
from gsae_ray.activation_files.groups import ContextGroups, Groups, every, runs
from gsae_ray.activation_files.parquet_files import KEYS, row_count, width_and_dtype
from gsae_ray.activation_files.saelens_files import files_of_cache, open_cache, read_kept, read_tokens
from gsae_ray.activation_files.safetensors_files import open_tables, read_keys
from gsae_ray.activation_files.schema import (
    CONTEXTS,
    FORMAT,
    ROWS,
    SCHEMA,
    SCHEMA_FILE,
    Contexts,
    Schema,
    contexts_path,
    splits,
)
from gsae_ray.activation_files.table import RowTable
from gsae_ray.errors import DamagedError, UserError, first_line, shown, suggest


@dataclasses.dataclass(frozen=True)
class OpenRows:
    """Rows of the same positions at some sites."""

    tables: dict[str, RowTable]
    """Site -> its rows."""
    groups: Groups
    tokens: Callable[[], NDArray[Any] | None]
    """Reads the token ids [C, T] of the contexts that the groups are; None where there are none."""

    @property
    def dtype(self) -> str:
        return next(iter(self.tables.values())).dtype


class FilesOfRows(Protocol):
    """Files, which any process can open that sees them."""

    def open(self, sites: Sequence[str]) -> OpenRows:
        """Memory-maps the rows of some sites.

        Raises:
            UserError: files are damaged, or do not fit together.
        """


@dataclasses.dataclass(frozen=True)
class ForeignFiles:
    """Files that others have written."""

    format: Format
    files: tuple[Path, ...]
    """In the order of their rows; of `saelens` the folder."""
    column: str | None
    group_column: str | None
    group_rows: int
    skip_positions: int
    """Of `saelens`: so many first positions of a context are no rows."""
    key: str
    """Of the sweep file, where they are named."""
    unpacked: Path | None = None
    """Of `parquet`: the folder that they were unpacked to."""

    def open(self, sites: Sequence[str]) -> OpenRows:
        """See `FilesOfRows`."""
        if self.format == "saelens":
            return self._open_cache(sites)
        files, column, group_column = self.files, self.column, self.group_column
        if self.unpacked is not None:
            files, column = tuple(sorted(self.unpacked.glob("*.safetensors"))), ROWS
            group_column = group_column and KEYS
        tables = open_tables(files, sites, column, self.key)
        table = next(iter(tables.values()))
        if other := next((site for site, found in tables.items() if len(found) != len(table)), None):
            raise UserError(f"{self.key}: {len(table):,} rows at {sites[0]}, {len(tables[other]):,} at {other}")
        if group_column is not None:
            groups: Groups = runs(read_keys(files, group_column, table, self.key))
        else:
            # An unpacked file ends anywhere: groups go on, as if there were one.
            starts = np.zeros(1, np.int64) if self.unpacked is not None else table.starts[:-1]
            groups = every(len(table), self.group_rows, starts)
        return OpenRows(tables, groups, lambda: None)

    def paths(self) -> list[Path]:
        """All files that decide the rows, in the order of their rows."""
        return [path for file in self.files for path in (files_of_cache(file, self.key) if file.is_dir() else [file])]

    def shape(self, sites: Sequence[str]) -> tuple[dict[str, int], str]:
        """Width of the rows at each site, and their dtype.

        Raises:
            UserError: as `open`.
        """
        if self.format == "parquet":
            assert self.column is not None, "so it was looked up"
            width, dtype = width_and_dtype(self.files, self.column, self.key)
            return dict.fromkeys(sites, width), dtype
        found = self.open(sites)
        return {site: table.width for site, table in found.tables.items()}, found.dtype

    def row_count(self, sites: Sequence[str]) -> int:
        """How many rows there are."""
        if self.format == "parquet":
            return row_count(self.files, self.key)
        return int(self.open(sites).groups.rows_G.sum())

    def _open_cache(self, sites: Sequence[str]) -> OpenRows:
        caches = {site: open_cache(self.files[0], site, self.column, self.key) for site in sites}
        cache = next(iter(caches.values()))
        if self.skip_positions >= cache.context_size:
            raise UserError(
                f"dataset.skip_positions: {self.skip_positions} leaves nothing of contexts of {cache.context_size}"
            )
        kept_T = np.arange(cache.context_size) >= self.skip_positions
        groups = ContextGroups(read_kept(cache, self.key) & kept_T, whole=True)
        tables = {site: found.table for site, found in caches.items()}
        return OpenRows(tables, groups, lambda: read_tokens(cache, self.key))


@dataclasses.dataclass(frozen=True)
class CollectedFiles:
    """A split of what `gsae-ray collect` has written."""

    folder: Path
    split: str
    key: str
    """Of the sweep file, where the folder is named."""

    def schema(self) -> Schema:
        """That of the folder.

        Raises:
            UserError: it is damaged, or of another version.
        """
        try:
            found = SCHEMA.read(self.folder / SCHEMA_FILE)
        except DamagedError as error:
            raise UserError(f"{self.key}: {error}") from error
        assert found is not None, "that is how the folder was found"
        if found["format"] != FORMAT:
            raise UserError(
                f"{self.key}: {self.folder} is of format {shown(found['format'])}; this version reads {FORMAT}"
            )
        return found

    def needed(self, sites: Sequence[str]) -> dict[Path, str]:
        """Path -> sha256, of all that is read for some sites.

        Raises:
            UserError: it has no such site.
        """
        schema = self.schema()
        for site in sites:
            if site not in schema["sites"]:
                raise UserError(f"sites: {site} is not in {self.folder}; {suggest(site, schema['sites'])}")
        folders = {CONTEXTS, *(schema["sites"][site]["folder"] for site in sites)}
        places = {(self.split, folder) for folder in folders}
        files = {name: file["sha256"] for name, file in schema["files"].items() if Path(name).parts[:2] in places}
        return {self.folder / name: sha256 for name, sha256 in files.items()}

    def open(self, sites: Sequence[str]) -> OpenRows:
        """See `FilesOfRows`."""
        schema, split = self.schema(), self.split
        blocks = range(len(splits(schema)[split]["rows"]))
        paths = [self.folder / contexts_path(split, block) for block in blocks]
        kept_CT = np.concatenate([_contexts(path, self.key).kept_ST.numpy() for path in paths])
        whole = schema["layout"] == "saelens"
        tables = {}
        for name in sites:
            site = schema["sites"][name]
            place = self.folder / split / site["folder"]
            if whole:
                found = open_cache(place, name, site["column"], self.key).table
            else:
                files = [path for path in sorted(self.needed([name])) if path.parent == place]
                found = open_tables(files, [name], ROWS, self.key)[name]
            tables[name] = RowTable(found.parts, self.key, schema["dtype"])

        def tokens() -> NDArray[Any]:
            return np.concatenate([_contexts(path, self.key).tokens_ST.numpy() for path in paths])

        return OpenRows(tables, ContextGroups(kept_CT, whole), tokens)


def _contexts(path: Path, key: str) -> Contexts:
    try:
        return Contexts.decode(path.read_bytes())
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{key}: {path} is missing or damaged ({first_line(error)}); collect again") from error
