"""The sweep file: its schema, and how a sweep expands to its trials.

Every field's description is the documentation: `gsae-ray run --help` prints these models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pydantic
from pydantic import Field

from gsae_ray.config.activation_files import ActivationsSettings, FileRowSettings, problems_beside_files
from gsae_ray.config.checks import device_problems, site_problems
from gsae_ray.config.explain import Key, listed, problems, refusal
from gsae_ray.config.kinds import Dataset, Model, is_synthetic, read_dataset, read_model, with_what_may_be_left_out
from gsae_ray.config.parents import with_parent
from gsae_ray.config.recipe import EngineName, TrainingSettings
from gsae_ray.config.sae_settings import SAESettings, check_count
from gsae_ray.config.sections import (
    DatasetSettings,
    EvaluationSettings,
    ModelSettings,
    ProducerSettings,
    ReferenceSettings,
    RowSettings,
    TrialSettings,
)
from gsae_ray.config.site import Site, SiteSettings
from gsae_ray.config.synthetic import SITE, SyntheticSettings, problems_beside
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError, shown
from gsae_ray.fields import Settings
from gsae_ray.names import MAX_COMPONENT, folder_name
from gsae_ray.saes import REGISTRY, SAEConfig

EQUAL_COMPUTE = 1.5
"""Width of a standard SAE ÷ width of the gated one that it is compared with: the paper's convention.

A gated step has 7 dense products (8 with norm_weighted) where a standard one has 5 (see `training_products`), so that
1.4 (1.6) would be exact.
"""


def _on_files(found: pydantic.ValidationInfo) -> bool:
    """Whether there is a section `activations`, which may have something wrong with it."""
    return found.data.get("activations", ...) is not None


class Sweep(Settings):
    """A sweep file."""

    name: str = Field(description="names the sweep and its folder in storage: letters, digits, _, . and -")
    experiment: str | None = Field(
        None, min_length=1, max_length=250, description="the MLflow experiment; default: the sweep's name"
    )
    activations: ActivationsSettings | None = None
    model: Model | None
    dataset: Dataset
    sites: SiteSettings
    saes: tuple[SAESettings, ...] = Field(description="the SAEs to train at each site; a list of entries")
    training: TrainingSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    producers: ProducerSettings = ProducerSettings()
    trials: TrialSettings = TrialSettings()
    references: tuple[ReferenceSettings, ...] = Field(
        (), description="SAEs from elsewhere to show on the frontier; a list of entries"
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        return with_what_may_be_left_out(value)

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: object, found: pydantic.ValidationInfo) -> Model | None:
        return read_model(value, _on_files(found))

    @pydantic.field_validator("dataset", mode="before")
    @classmethod
    def _dataset(cls, value: object, found: pydantic.ValidationInfo) -> Dataset:
        return read_dataset(value, found.data.get("model"), _on_files(found))

    @pydantic.field_validator("name")
    @classmethod
    def _fit_for_a_folder(cls, name: str) -> str:
        if folder_name(name) != name or not name[:1].isalnum():
            raise ValueError(
                f"{shown(name)} should be letters, digits, _, . and -, the first a letter or digit, and at most "
                f"{MAX_COMPONENT} long"
            )
        return name

    @pydantic.field_validator("saes", "references", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Sweep:
        found: list[tuple[Key, str]] = []
        if isinstance(self.dataset, DatasetSettings) and self.rows_a_context < 2:  # the last has no next token
            skipped, context = self.text.skip_positions, self.language_model.context_size
            found.append(
                (
                    ("dataset", "skip_positions"),
                    f"{skipped} leaves nothing to evaluate of a context of {context}; at most {context - 2}",
                )
            )
        if not self.saes:
            found.append((("saes",), "an empty list; give at least one entry"))
        for index, entry in enumerate(self.saes):
            try:
                settings = entry.training(self.training)
            except pydantic.ValidationError as error:
                found += [(("saes", index, *key), text) for key, text in problems(error, TrainingSettings)]
                continue
            if (entry.model_extra or {}).get("engine") == "auto":
                found.append((("saes", index, "engine"), "auto is for the whole sweep: training.engine"))
            for name, text in device_problems(settings, self.trials.gpus):
                value = getattr(settings, name)
                key: Key = ("training", name) if value == getattr(self.training, name) else ("saes", index, name)
                if (key, text) not in found:  # said once of what all entries have
                    found.append((key, text))
        if self.activations is not None:
            has_model = self.model is not None
            found += problems_beside_files(self.activations, has_model, self.evaluation, self.producers)
        by_layer = bool(self.sites.layers), bool(self.sites.points)
        if self.is_synthetic:
            beside = list(problems_beside(self.sites, self.saes, self.evaluation, self.producers))
            found += beside or site_problems(self.sites, self.all_sites, self.saes, self.references)
        elif not all(by_layer) and not self.sites.modules:
            found.append((("sites",), "no site; give layers and points, or modules"))
        elif by_layer[0] != by_layer[1]:
            found.append((("sites",), "layers and points go together; one of them is missing"))
        elif not self.depends_on_model:
            found += site_problems(self.sites, self.all_sites, self.saes, self.references)
        if found:
            raise refusal(found)
        return self

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

    @property
    def depends_on_model(self) -> bool:
        """Whether it takes the model's number of layers to tell its sites."""
        return any(sites.depends_on_model for sites in (self.sites, *(e.sites for e in self.saes)) if sites is not None)

    def of_model(self, n_layers: int | None) -> Sweep:
        """The same sweep with layers numbered from 0, for a model that has `n_layers`.

        Args:
            n_layers: how many layers the model has; None where it does not say.

        Raises:
            UserError: the model has no such layer, or a filter leaves no site.
        """
        if not self.depends_on_model:
            return self
        if n_layers is None:
            what = "files do not" if self.activations is not None else "this model does not"
            raise UserError(f"sites.layers: {what} say how many layers the model has; give numbers from 0")
        own = self.sites.of_model(n_layers, "sites.layers")
        saes = tuple(
            entry.of_model(n_layers, f"saes.{index}.sites.layers", own.numbers) for index, entry in enumerate(self.saes)
        )
        sweep = self.model_copy(update={"sites": own, "saes": saes})
        if found := site_problems(own, own.sites(), saes, self.references):
            raise UserError(listed(found))
        return sweep

    @property
    def possible_engines(self) -> tuple[EngineName, ...]:
        """Those that `engine: auto` may be: that every trial can have whose entry names none; the fastest last."""
        sparse = self.trials.gpus == 0 and all(
            REGISTRY[entry.architecture].gated_relu(hyperparameters, objective) is not None
            for entry in self.saes
            if (settings := entry.training(self.training)).engine == "auto"
            for hyperparameters in entry.hyperparameters()
            for objective in settings.objective
        )
        return ("dense", "sparse-cpu") if sparse else ("dense",)

    def with_engine(self, name: EngineName) -> Sweep:
        """The same sweep with that engine in place of `auto`."""
        return self.model_copy(update={"training": self.training.model_copy(update={"engine": name})})

    @property
    def experiment_name(self) -> str:
        return self.experiment or self.name

    @property
    def shuffle_tokens(self) -> int:
        """About how many rows a block has: by the file's own `training.tokens`, whatever entries override."""
        return self.dataset.shuffle_tokens or max(1, min(1_000_000, self.training.tokens // 4))

    @property
    def block_contexts(self) -> int:
        """How many contexts a block has."""
        return math.ceil(self.shuffle_tokens / self.rows_a_context)

    @property
    def rows_a_block(self) -> int:
        """Rows of a block without special tokens."""
        return self.block_contexts * self.rows_a_context

    @property
    def rows_a_context(self) -> int:
        """Rows of a context without special tokens; where there is no text a row is a context of its own."""
        if not isinstance(self.dataset, DatasetSettings):
            return 1
        return self.language_model.context_size - self.text.skip_positions

    @property
    def used_sites(self) -> tuple[Site, ...]:
        """The sites that some entry of `saes` trains at, in the file's order."""
        return tuple(site for site in self.all_sites if any(entry.selects(site) for entry in self.saes))

    def max_tokens(self, site: Site) -> int:
        """Rows that the longest trial at a site reads."""
        entries = [entry for entry in self.saes if entry.selects(site)]
        return max(entry.training(self.training).tokens for entry in entries)

    def notices(self) -> list[str]:
        """Lines on what of the schedules does not fit into the runs."""
        lines: list[str] = []
        for entry in self.saes:
            is_child = REGISTRY[entry.architecture].parent_architecture is not None  # which resamples nothing
            lines += entry.training(self.training).notices(resamples=not is_child)
        return list(dict.fromkeys(lines))

    def widths(self, entry: SAESettings, site: Site, d_in: Mapping[Site, int]) -> tuple[int, ...]:
        """Widths of an entry's SAEs at a site.

        Raises:
            UserError: a width of 0, or no SAE to compute as much as.
        """
        if entry.equal_compute_with is None:
            return entry.own_widths(site, d_in[site])
        others = [e for e in self.saes if e.architecture == entry.equal_compute_with and e.selects(site)]
        widths = sorted({round(EQUAL_COMPUTE * width) for e in others for width in e.own_widths(site, d_in[site])})
        if not widths:
            raise UserError(
                f"saes.{self.saes.index(entry)}: widths.equal_compute_with: no entry of saes is "
                f"{entry.equal_compute_with} at {site}"
            )
        return tuple(widths)

    def _check_size(self, d_in: Mapping[Site, int]) -> None:
        """Checks the number of trials, before any is made.

        Raises:
            UserError: there are more than a sweep may have.
        """
        total = 0
        for entry, site in itertools.product(self.saes, self.used_sites):
            if entry.selects(site):
                settings = entry.training(self.training)
                grids = settings.objective, settings.schedule, settings.lr, settings.seeds
                trials = len(self.widths(entry, site, d_in)) * len(entry.hyperparameters())
                total += trials * math.prod(map(len, grids))
        try:
            check_count(total)
        except ValueError as error:
            raise UserError(f"saes: {error}") from error

    def expand(
        self,
        d_in: Mapping[Site, int],
        provenance: Mapping[str, str],
        parents: Mapping[str, tuple[SAEConfig, str]] | None = None,
    ) -> list[TrialSpec]:
        """The trials, in a fixed order: by entry, site, width, hyperparameters, recipe, lr, seed.

        Args:
            d_in: width of the activations at each of `used_sites`.
            provenance: what besides the file decides a trial's weights (fingerprints of model and tokens).
            parents: run id -> the SAE's configuration and a hash of it, for each run that a hyperparameter `parent`
                names.

        Raises:
            UserError: two entries describe the same trial, a trial has no parent or one that does not fit, or
                `evaluation.pursuit_l0` is more than the features of an SAE.
        """
        if self.training.engine == "auto":  # as in a first launch, where Numba is
            return self.with_engine(self.possible_engines[-1]).expand(d_in, provenance, parents)
        forward = {"batch": self.producers.batch, "threads": self.producers.cpus, "gpu": self.producers.gpus > 0}
        process = {"threads": self.trials.cpus, "gpu": self.trials.gpus != 0}
        identity = {**provenance, "forward": forward, "process": process, "max_norm": self.dataset.max_norm}
        trials: list[TrialSpec] = []
        children: dict[int, str] = {}
        self._check_size(d_in)
        for (index, entry), site in itertools.product(enumerate(self.saes), self.used_sites):
            if not entry.selects(site):
                continue
            settings = entry.training(self.training)
            unnamed = {"lr", "seeds", "objective", "schedule", "log_every_tokens", "checkpoint_every_tokens"}
            overrides = {k: v for k, v in settings if k not in unnamed and v != getattr(self.training, k)}
            for d_sae, hyperparameters, objective, schedule, lr, seed in itertools.product(
                self.widths(entry, site, d_in),
                entry.hyperparameters(),
                settings.objective,
                settings.schedule,
                settings.lr,
                settings.seeds,
            ):
                architecture = REGISTRY[entry.architecture]
                if settings.engine != "dense" and architecture.gated_relu(hyperparameters, objective) is None:
                    raise UserError(
                        f"saes.{index}.engine: {settings.engine} has no {entry.architecture} SAEs; engine: dense has"
                    )
                if architecture.parent_architecture is not None:
                    children[len(trials)] = f"saes.{index}"
                trials.append(
                    TrialSpec.make(
                        site=site.name,
                        architecture=entry.architecture,
                        d_in=d_in[site],
                        d_sae=d_sae,
                        hyperparameters=architecture.canonical(hyperparameters, objective),
                        training=settings.resolve(lr, seed, objective, schedule),
                        overrides=overrides,
                        identity=identity,
                    )
                )
        roots = [trial for i, trial in enumerate(trials) if i not in children]
        model = None if self.model is None else self.model.name
        for place, where in children.items():
            trials[place] = with_parent(trials[place], where, roots, parents or {}, model)
        seen: dict[str, str] = {}
        for trial in trials:
            # The same name in one folder, or the same SAE under two names: either way one of them is too much.
            same = next((seen[key] for key in (trial.name, trial.identity) if key in seen), None)
            if same is not None:
                also = "" if same == trial.name else f" (also as {same})"
                raise UserError(f"saes: two entries describe the trial {trial.name}{also}")
            seen |= {trial.name: trial.name, trial.identity: trial.name}
        self._check_pursuit(trials)
        return trials

    def _check_pursuit(self, trials: list[TrialSpec]) -> None:
        """Checks that every SAE has the features that gradient pursuit may use.

        Raises:
            UserError: an SAE is narrower than one of `evaluation.pursuit_l0`.
        """
        narrowest = min(trials, key=lambda trial: trial.d_sae)
        for l0 in self.evaluation.pursuit_l0 or ():
            if l0 > narrowest.d_sae:
                raise UserError(
                    f"evaluation.pursuit_l0: {l0} features a row, but {narrowest.name} has only {narrowest.d_sae}; "
                    "lower it"
                )
