"""A data set of the Hugging Face hub, or a local folder in a format that is left to `datasets`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from gsae_ray.config.sections import DatasetSettings
from gsae_ray.data.column import Column
from gsae_ray.data.local_data import cache_of
from gsae_ray.data.local_files import files_below
from gsae_ray.errors import UserError, first_line
from gsae_ray.files import digest, file_hash
from gsae_ray.hub import hub_login
from gsae_ray.language_model.hub import quiet_hub


@dataclasses.dataclass(frozen=True)
class HubData:
    """A data set of the hub; or a local folder in a format that is left to `datasets`."""

    dataset: DatasetSettings

    @property
    def _folder(self) -> Path | None:
        folder = Path(self.dataset.name).expanduser()
        return folder if folder.is_dir() else None

    def fingerprint(self, _split: str, _key: str) -> str:
        """Identity of the data: name and commit, or a hash of a folder's contents, and which of its files are read."""
        dataset = self.dataset
        if folder := self._folder:
            files = sorted({*files_below(folder), *folder.glob("README.md")})  # whose `configs` name files of splits
            contents = [[path.relative_to(folder).as_posix(), file_hash(path)] for path in files]
            return digest([contents, dataset.subset, dataset.data_files])
        patterns = f"/{digest(dataset.data_files)}" if dataset.data_files else ""
        return f"{dataset.name}/{dataset.subset}@{dataset.revision}{patterns}"

    def load(self, split: str, _column: Column, key: str) -> datasets.Dataset | datasets.IterableDataset:
        """The rows of a split, in the data set's own order.

        Raises:
            UserError: the data set or the split cannot be loaded.
        """
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

    def pinned(self) -> DatasetSettings:
        """The settings with the commit that the revision stands for now; offline, and of a folder, unchanged."""
        if self._folder:
            return self.dataset
        try:
            with quiet_hub():
                commit = HfApi().dataset_info(self.dataset.name, revision=self.dataset.revision).sha
        except (OSError, ValueError, HTTPError):  # HTTPError: the hub does not answer
            return self.dataset  # `load` explains better what is wrong
        return self.dataset.model_copy(update={"revision": commit})

    def place(self, split: str, row: int | None) -> str:
        """Where a row is, for messages."""
        return "a row of the stream" if row is None else f"row {row} of split {split!r}"

    def notice(self, _split: str) -> str | None:
        """Nothing is to be said about the files that are taken."""
        return None
