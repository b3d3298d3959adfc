"""Where a sweep's activations come from, by its settings: a language model, files, or a known dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsae_ray.config.activation_files import ActivationsSettings, FileRowSettings
from gsae_ray.config.kinds import Dataset, Model, is_synthetic
from gsae_ray.config.sections import DatasetSettings, ModelSettings, RowSettings
from gsae_ray.config.site import Site, SiteSettings
from gsae_ray.config.synthetic import SITE, SyntheticSettings


class SourceOfSweep:
    """The part of `Sweep` that tells its source."""

    if TYPE_CHECKING:  # fields of Sweep
        model: Model | None
        dataset: Dataset
        activations: ActivationsSettings | None
        sites: SiteSettings

    @property
    def is_synthetic(self) -> bool:
        """Whether its activations are synthetic, without a language model."""
        return is_synthetic(self.model)

    @property
    def synthetic(self) -> SyntheticSettings:
        """The settings of its synthetic activations; only of a sweep that has them."""
        assert isinstance(self.model, SyntheticSettings), "this sweep has a language model"
        return self.model

    @property
    def language_model(self) -> ModelSettings:
        """The settings of its language model; only of a sweep that has one."""
        assert isinstance(self.model, ModelSettings), "this sweep has no language model"
        return self.model

    @property
    def text(self) -> DatasetSettings:
        """The settings of what its language model reads; only of a sweep that has one."""
        assert isinstance(self.dataset, DatasetSettings), "this sweep has no text"
        return self.dataset

    @property
    def drawn_rows(self) -> RowSettings:
        """Which rows are drawn; only of a synthetic sweep."""
        assert isinstance(self.dataset, RowSettings), "this sweep draws no rows"
        return self.dataset

    @property
    def files(self) -> ActivationsSettings:
        """Where its activations lie on disk; only of a sweep that reads them there."""
        assert self.activations is not None, "this sweep does not read activations from disk"
        return self.activations

    @property
    def file_rows(self) -> FileRowSettings:
        """Which rows of these files; only of a sweep that reads them."""
        assert isinstance(self.dataset, FileRowSettings), "this sweep does not read activations from disk"
        return self.dataset

    @property
    def compute_dtype(self) -> str:
        """What producers compute in."""
        return self.model.dtype if isinstance(self.model, ModelSettings) else "float32"

    @property
    def source(self) -> str:
        """Where its activations come from, in words."""
        if self.is_synthetic:
            return "synthetic activations"
        if self.activations is not None:
            spliced = f", model {self.language_model.name}" if self.model is not None else ""
            return f"activations {self.activations.path}{spliced}"
        return f"model {self.language_model.name}, data {self.text.name}"

    @property
    def all_sites(self) -> tuple[Site, ...]:
        """The sites that `sites` names; the one of a synthetic sweep."""
        return (SITE,) if self.is_synthetic else self.sites.sites()
