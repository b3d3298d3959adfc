"""Where training rows and held-out rows lie on disk: in a folder that was collected, or in files of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gsae_ray.activation_files.find import collected_folder, find_files
from gsae_ray.activation_files.groups import ContextGroups
from gsae_ray.activation_files.opened import CollectedFiles, ForeignFiles
from gsae_ray.activation_files.parquet_files import parquet_column
from gsae_ray.activation_files.ready import Ready, ready_collected, ready_foreign, unpacked_bytes
from gsae_ray.activation_files.schema import HELDOUT, TRAIN
from gsae_ray.config.activation_files import GROUP_ROWS, ActivationsSettings, FileRowSettings
from gsae_ray.data.prepare import Progress
from gsae_ray.errors import UserError, shown

PATH, HELD_OUT = "activations.path", "activations.heldout"


class Splits(Protocol):
    """Training rows and held-out rows, as they lie on disk."""

    widths: dict[str, int]
    """Site -> width of its rows."""
    dtype: str
    seed: int
    """Of the data."""
    as_they_lie: bool
    """Whether groups were shuffled by that seed before they were written."""
    blocks: tuple[int, ...]
    """Rows of the first blocks; of no block where all have as many as the sweep says."""
    about: dict[str, Any]
    """What besides the files' contents decides the rows that they stand for."""
    metadata: dict[str, Any]
    """`model` and `dataset`, as every SAE's `cfg.json` says them."""
    modules: dict[str, str]
    """Site -> the same by module path, where that is known."""
    model_fingerprint: str | None
    """Of the model that they are of, where that is known."""
    masks: tuple[tuple[int, ...], int]
    """Tokens, and first positions of a context, that are no rows."""
    unpacked_bytes: int
    """What Parquet files take in storage, unpacked."""
    rows_at_most: tuple[int, int]
    """Rows for training and for evaluation; where held-out rows do not stand apart, all of them both times."""

    def ready(self, kept_in: Path, report: Progress) -> tuple[Ready, Ready | None]:
        """Training files and, where they stand apart, held-out ones, looked through."""


class Collected:
    """What `gsae-ray collect` has written; see `Splits`."""

    def __init__(
        self, folder: Path, settings: ActivationsSettings, rows: FileRowSettings, sites: Sequence[str]
    ) -> None:
        """Reads the schema.

        Raises:
            UserError: it is damaged, lacks a site, or settings are for other files.
        """
        self._train, self._heldout = (CollectedFiles(folder, split, PATH) for split in (TRAIN, HELDOUT))
        self._sites, self.schema = sites, (schema := self._train.schema())
        for name in ("column", "group_column", "group_rows", "heldout"):
            if getattr(settings, name) is not None:
                raise UserError(f"activations.{name}: {folder} says that itself (it was collected); leave it out")
        if rows.skip_positions is not None:
            raise UserError(f"dataset.skip_positions: {folder} says that itself (it was collected); leave it out")
        if settings.format not in (None, schema["layout"]):
            raise UserError(f"activations.format: {folder} is {schema['layout']}, not {settings.format}")
        self._train.needed(sites)
        self.widths = {site: schema["sites"][site]["width"] for site in sites}
        self.dtype = schema["dtype"]
        self.seed = schema["seed"] if rows.seed is None else rows.seed
        self.as_they_lie = self.seed == schema["seed"]
        own_blocks = self.as_they_lie and rows.shuffle_tokens is None
        self.blocks = tuple(schema["train"]["rows"]) if own_blocks else ()
        self.about = {"collected": schema["format"]}
        self.rows_at_most = sum(schema["train"]["rows"]), sum(schema["heldout"]["rows"])
        self.metadata = {"model": schema["model"], "dataset": schema["dataset"]}
        self.modules = {s: module for s in sites if (module := schema["sites"][s]["module"]) is not None}
        self.model_fingerprint: str | None = schema["model_fingerprint"]
        self.masks = tuple(schema["special_ids"]), schema["skip_positions"]
        self.unpacked_bytes = 0

    def ready(self, kept_in: Path, report: Progress) -> tuple[Ready, Ready]:
        train, heldout = (ready_collected(f, self._sites, kept_in, report) for f in (self._train, self._heldout))
        return train, heldout


class Foreign:
    """Files of others; see `Splits`."""

    model_fingerprint: str | None = None
    as_they_lie = False
    blocks: tuple[int, ...] = ()

    def __init__(
        self, settings: ActivationsSettings, rows: FileRowSettings, sites: Sequence[str], say: Callable[[str], None]
    ) -> None:
        """Opens the files.

        Raises:
            UserError: they are not there, do not fit together, or settings are for files of another format.
        """
        self._settings, self._rows, self._sites = settings, rows, sites
        self._train = self._find(settings.path, PATH)
        self._heldout = None if settings.heldout is None else self._find(settings.heldout, HELD_OUT)
        self.widths, self.dtype = self._train.shape(sites)
        if self._heldout is not None:
            self._check_heldout(self._heldout)
        for line in self._notices():
            say(line)
        self.seed = rows.seed or 0
        self.about = {
            "format": self._train.format,
            "column": self._train.column,
            "groups": settings.group_column or settings.group_rows,
            "skip_positions": self._skip_positions,
        }
        self.metadata: dict[str, Any] = {"model": {}, "dataset": {"path": settings.path}}
        if self._train.format == "saelens":
            groups = self._train.open(sites).groups
            assert isinstance(groups, ContextGroups)
            self.metadata["model"]["context_size"] = groups.kept_CT.shape[1]
            self.metadata["dataset"]["skip_positions"] = self._skip_positions
        self.modules: dict[str, str] = {}
        self.masks: tuple[tuple[int, ...], int] = (), self._skip_positions
        self.unpacked_bytes = sum(unpacked_bytes(f) for f in (self._train, self._heldout) if f is not None)
        counts = [file.row_count(sites) for file in (self._train, self._heldout) if file is not None]
        self.rows_at_most = counts[0], counts[-1]

    @property
    def _skip_positions(self) -> int:
        return 1 if self._rows.skip_positions is None else self._rows.skip_positions

    def _find(self, path: str, key: str) -> ForeignFiles:
        settings, rows = self._settings, self._rows
        format_, files = find_files(path, settings.format, key)
        if format_ == "saelens":
            for name in ("group_column", "group_rows"):
                if getattr(settings, name) is not None:
                    raise UserError(f"activations.{name}: the groups of format: saelens are its contexts; leave it out")
        elif rows.skip_positions is not None:
            raise UserError(f"dataset.skip_positions: format: {format_} has no contexts; leave it out")
        column = settings.column
        if len(self._sites) > 1:
            if format_ == "parquet":
                raise UserError(f"{key}: Parquet files have the rows of one site, and the sweep has {len(self._sites)}")
            if column is not None:
                raise UserError(
                    f"activations.column: {shown(column)} is the rows of one site, and the sweep has "
                    f"{len(self._sites)}: leave it out, and name each site's tensor or column as the site"
                )
        if format_ == "parquet":
            column = parquet_column(files, self._sites[0], column, key)
        return ForeignFiles(
            format=format_,
            files=tuple(file.resolve() for file in files),
            column=column,
            group_column=settings.group_column,
            group_rows=settings.group_rows or GROUP_ROWS,
            skip_positions=self._skip_positions,
            key=key,
        )

    def _check_heldout(self, heldout: ForeignFiles) -> None:
        if both := set(self._train.paths()) & set(heldout.paths()):
            raise UserError(f"{HELD_OUT}: {sorted(both)[0]} is among the files that are trained on; hold out others")
        widths, dtype = heldout.shape(self._sites)
        if widths != self.widths or dtype != self.dtype:
            (site, own), other = next(iter(self.widths.items())), next(iter(widths.values()))
            raise UserError(
                f"{HELD_OUT}: rows at {site} are {other} wide in {dtype}, those of activations.path {own} in "
                f"{self.dtype}; give files of one width and dtype"
            )

    def _notices(self) -> list[str]:
        settings = self._settings
        if self._train.format == "saelens":
            if self._rows.skip_positions is None:
                return ["dataset.skip_positions: 1 by default: the first position of every context is no row"]
            return []
        if settings.group_column is None and settings.group_rows is None:
            return [
                f"activations.group_rows: nothing says which rows belong together; {GROUP_ROWS} in order are taken as "
                "one group, which is held out whole"
            ]
        return []

    def ready(self, kept_in: Path, report: Progress) -> tuple[Ready, Ready | None]:
        train = ready_foreign(self._train, self._sites, kept_in, report)
        if self._heldout is None:
            return train, None
        return train, ready_foreign(self._heldout, self._sites, kept_in, report)


def find_splits(
    settings: ActivationsSettings, rows: FileRowSettings, sites: Sequence[str], say: Callable[[str], None]
) -> Splits:
    """Looks up the files of a sweep.

    Args:
        settings: where they are.
        rows: which rows.
        sites: names of the sites that are trained at.
        say: is told what the user should know.

    Raises:
        UserError: they are not there, or are not as the settings say.
    """
    folder = collected_folder(settings.path, PATH)
    if folder is not None:
        return Collected(folder.resolve(), settings, rows, sites)
    return Foreign(settings, rows, sites, say)
