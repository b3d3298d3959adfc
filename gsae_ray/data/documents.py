"""Where a data set's documents, text or token ids, are read from: local files, or the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from gsae_ray.config.sections import DatasetSettings
from gsae_ray.data.local_data import LocalData, cache_of, files_below, local_data
from gsae_ray.errors import UserError, first_line, suggest
from gsae_ray.files import digest, file_hash
from gsae_ray.language_model.hub import hub_login, quiet_hub

MASK = "attention_mask"
"""The column beside token ids that is 0 where they are padding."""


@dataclasses.dataclass(frozen=True)
class Column:
    """The column that holds the documents: text, or lists of token ids."""

    name: str
    vocabulary: int | None
    """Token ids are below it; None where the column is text."""

    @property
    def is_text(self) -> bool:
        return self.vocabulary is None

    @property
    def key(self) -> str:
        """Where the sweep file names it."""
        return "dataset.text_column" if self.is_text else "dataset.tokens_column"

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns to read, if they are there."""
        return (self.name,) if self.is_text else (self.name, MASK)

    def missing(self, columns: Iterable[str]) -> UserError:
        return UserError(f"{self.key}: no column {self.name!r}; {suggest(self.name, columns)}")

    def check(self, example: Mapping[str, Any], where: Callable[[], str]) -> None:
        """Whether an example's document is one.

        Args:
            where: file and row, for the message.
        Raises:
            UserError: it is no text, or not all are token ids of this model, or the mask does not fit them.
        """
        document = example.get(self.name)
        if document is None:
            return
        if not isinstance(document, str if self.is_text else list):
            what = "text" if self.is_text else "a list of token ids"
            raise UserError(f"{self.key}: {self.name!r} holds {_shown(document)} ({where()}), not {what}")
        if self.vocabulary is None:
            return
        for position, value in enumerate(document):
            if type(value) is not int or not 0 <= value < self.vocabulary:  # a bool is an int too
                raise UserError(
                    f"{self.key}: {self.name!r} holds {_shown(value)} ({where()}, position {position}); token ids of "
                    f"this model are 0 to {self.vocabulary - 1}"
                )
        mask = example.get(MASK)
        if mask is not None and (
            not isinstance(mask, list) or len(mask) != len(document) or any(m not in (0, 1) for m in mask)
        ):
            raise UserError(f"{self.key}: {MASK} is not a 0 or 1 for each of the ids of {self.name!r} ({where()})")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclasses.dataclass(frozen=True)
class HubData:
    """A data set of the hub; or a local folder in a format that is left to `datasets`."""

    dataset: DatasetSettings

    @property
    def _folder(self) -> Path | None:
        folder = Path(self.dataset.name).expanduser()
        return folder if folder.is_dir() else None

    def fingerprint(self, split: str, key: str) -> str:
        """Name and commit; of a folder, its contents; and what says which of them are read."""
        dataset = self.dataset
        if folder := self._folder:
            files = sorted({*files_below(folder), *folder.glob("README.md")})  # whose `configs` name files of splits
            contents = [[path.relative_to(folder).as_posix(), file_hash(path)] for path in files]
            return digest([contents, dataset.subset, dataset.data_files])
        patterns = f"/{digest(dataset.data_files)}" if dataset.data_files else ""
        return f"{dataset.name}/{dataset.subset}@{dataset.revision}{patterns}"

    def load(self, split: str, column: Column, key: str) -> datasets.Dataset | datasets.IterableDataset:
        """The documents of a split, in the data set's own order."""
        datasets.disable_progress_bars()
        dataset = self.dataset
        options: dict[str, Any] = {}
        if dataset.data_files:
            options["data_files"] = {name: list(patterns) for name, patterns in dataset.data_files.items()}
        if self._folder:
            options["cache_dir"] = cache_of(self.fingerprint(split, key))
        try:
            with quiet_hub():
                return datasets.load_dataset(
                    str(self._folder or dataset.name),
                    dataset.subset,
                    split=split,
                    revision=dataset.revision,
                    streaming=dataset.streaming,
                    **options,
                )
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            reason = first_line(error)
            if "split" in reason:
                raise UserError(f"{key}: {dataset.name!r} has no split {split!r}: {reason}") from error
            if "gated" in reason:
                raise UserError(f"dataset.name: cannot load {dataset.name!r}: {reason}; and {hub_login()}") from error
            raise UserError(
                f"dataset.name: cannot load {dataset.name!r} (split {split!r}): {reason}; "
                "it may be 'builtin', local files, or a data set of the hub (which needs a network)"
            ) from error

    def place(self, split: str, row: int | None) -> str:
        return "a row of the stream" if row is None else f"row {row} of split {split!r}"

    def notice(self, split: str) -> str | None:
        return None


def find_data(dataset: DatasetSettings) -> LocalData | HubData:
    """Where the documents come from.

    Raises:
        UserError: no file matches, files are of several kinds, or a file is of two splits.
    """
    try:
        return local_data(dataset) or HubData(dataset)
    except (OSError, ValueError, RuntimeError) as error:  # no right to look, too long, ** within a name, no such ~
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise UserError(f"dataset.name: cannot look for {dataset.name[:100]!r}: {reason}") from error


def pinned_data(dataset: DatasetSettings) -> DatasetSettings:
    """With the commit that a hub data set's revision stands for now; offline as it is."""
    if isinstance(find_data(dataset), LocalData) or Path(dataset.name).expanduser().is_dir():
        return dataset
    try:
        with quiet_hub():
            commit = HfApi().dataset_info(dataset.name, revision=dataset.revision).sha
    except (OSError, ValueError, HTTPError):  # the last of a hub that does not answer
        return dataset  # what is wrong with it, `HubData.load` says better
    return dataset.model_copy(update={"revision": commit})
