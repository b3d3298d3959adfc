"""The sweep file: its schema, and how a sweep expands to its trials.

Every field's description is the documentation: `gsae-ray run --help` prints these models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pydantic
from pydantic import Field

from gsae_ray.config.activation_files import ActivationsSettings, problems_beside_files
from gsae_ray.config.checks import (
    check_distinct,
    check_features,
    check_pursuit,
    device_problems,
    site_problems,
    snapshot_problems,
)
from gsae_ray.config.explain import Key, listed, problems, refusal
from gsae_ray.config.kinds import Dataset, Model, read_dataset, read_model, with_what_may_be_left_out
from gsae_ray.config.parents import with_parent
from gsae_ray.config.recipe import EngineName, TrainingSettings
from gsae_ray.config.sae_settings import SAESettings, check_count, check_target
from gsae_ray.config.scheduler import SchedulerSettings, check_scheduler
from gsae_ray.config.sections import (
    DatasetSettings,
    EvaluationSettings,
    ProducerSettings,
    ReferenceSettings,
    TrackingSettings,
    TrialSettings,
)
from gsae_ray.config.site import Site, SiteSettings
from gsae_ray.config.source_of_sweep import SourceOfSweep
from gsae_ray.config.synthetic import problems_beside
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


class Sweep(SourceOfSweep, Settings):
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
    tracking: TrackingSettings = TrackingSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
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
        if "objective" in self.training.model_fields_set and self.saes and not self._chooses_objective:
            names = ", ".join(dict.fromkeys(entry.architecture for entry in self.saes))
            found.append((("training", "objective"), f"nothing reads it: {names} SAEs have one objective only"))
        if self.evaluation.pursuit_l0 and any(entry.target for entry in self.saes):
            text = "finds the features of what an SAE reads; transcoders have none of what they compute: leave it out"
            found.append((("evaluation", "pursuit_l0"), f"{text}, or give them a sweep of their own"))
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
        found += [] if found else snapshot_problems(self.training, self.saes)
        if found:
            raise refusal(found)
        return self

    @pydantic.model_serializer(mode="wrap")
    def _readable_again(self, write: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out a default that would be refused, as nothing reads it."""
        written: dict[str, Any] = write(self)
        if not self._chooses_objective and isinstance(training := written.get("training"), dict):
            training.pop("objective", None)
        return written

    @property
    def _chooses_objective(self) -> bool:
        return any(entry.has_objective for entry in self.saes)

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
        """Those that `engine: auto` may be, the fastest last; what a sparse one does not have is left to `dense`."""
        open_ones = [entry for entry in self.saes if entry.training(self.training).engine == "auto"]
        has_any = not open_ones or any(entry.has_sparse_form(self.training) for entry in open_ones)
        sparse = self.trials.gpus == 0 and has_any
        return ("dense", "sparse-cpu") if sparse else ("dense",)

    def with_engine(self, name: EngineName) -> Sweep:
        """The same sweep with that engine in place of `auto`, and `dense` for the entries that it does not have."""
        saes = tuple(
            entry.model_copy(update={"engine": "dense"})
            if name != "dense"
            and entry.training(self.training).engine == "auto"
            and not entry.has_sparse_form(self.training)
            else entry
            for entry in self.saes
        )
        return self.model_copy(update={"saes": saes, "training": self.training.model_copy(update={"engine": name})})

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
    def trained_sites(self) -> tuple[Site, ...]:
        """The sites that some entry of `saes` trains at, in the file's order; of transcoders with their targets."""
        of_entries = (entry.site_of(site) for site in self.all_sites for entry in self.saes if entry.selects(site))
        return tuple(dict.fromkeys(of_entries))

    @property
    def used_sites(self) -> tuple[Site, ...]:
        """The places that trials have the activations of."""
        return tuple(dict.fromkeys(place for site in self.trained_sites for place in site.places))

    def max_tokens(self, site: Site) -> int:
        """Rows that the longest trial at one of `trained_sites` reads."""
        entries = [e for e in self.saes if e.selects(site.source) and e.site_of(site.source) == site]
        return max(entry.training(self.training).tokens for entry in entries)

    @property
    def longest_tokens(self) -> int:
        """Rows that the longest trial of all reads."""
        return max(map(self.max_tokens, self.trained_sites))

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
        kind = entry.equal_compute_with, entry.target
        others = [e for e in self.saes if (e.architecture, e.target) == kind and e.selects(site)]
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
        for entry, site in itertools.product(self.saes, self.all_sites):
            if entry.selects(site):
                settings = entry.training(self.training)
                grids = entry.objectives(settings), settings.schedule, settings.lr, settings.seeds
                trials = len(self.widths(entry, site, d_in)) * len(entry.hyperparameters())
                total += trials * math.prod(map(len, (*grids, entry.skip)))
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
        """The trials, in a fixed order: by entry, site, skip connection, width, hyperparameters, recipe, lr, seed.

        Args:
            d_in: width of the activations at each of `used_sites`.
            provenance: what besides the file decides a trial's weights (fingerprints of model and tokens).
            parents: run id -> the SAE's configuration and a hash of it, for each run that a hyperparameter `parent`
                names.

        Raises:
            UserError: two entries describe the same trial, a trial has no parent or one that does not fit, or
                `evaluation.pursuit_l0` is more than the features of an SAE, or the scheduler could stop nothing.
        """
        if self.training.engine == "auto":  # as in a first launch, where Numba is
            return self.with_engine(self.possible_engines[-1]).expand(d_in, provenance, parents)
        forward = {"batch": self.producers.batch, "threads": self.producers.cpus, "gpu": self.producers.gpus > 0}
        process = {"threads": self.trials.cpus, "gpu": self.trials.gpus != 0}
        identity = {**provenance, "forward": forward, "process": process, "max_norm": self.dataset.max_norm}
        trials: list[TrialSpec] = []
        children: dict[int, str] = {}
        self._check_size(d_in)
        for (index, entry), site in itertools.product(enumerate(self.saes), self.all_sites):
            if not entry.selects(site):
                continue
            settings = entry.training(self.training)
            unnamed = {"lr", "seeds", "objective", "schedule"}
            unnamed |= {"log_every_tokens", "checkpoint_every_tokens", "snapshots_at"}
            if not entry.has_sparse_form(self.training):
                unnamed.add("engine")  # there is only one
            target = entry.site_of(site).target
            overrides = {k: v for k, v in settings if k not in unnamed and v != getattr(self.training, k)}
            for skip, d_sae, hyperparameters, objective, schedule, lr, seed in itertools.product(
                entry.skip,
                self.widths(entry, site, d_in),
                entry.hyperparameters(),
                entry.objectives(settings),
                settings.schedule,
                settings.lr,
                settings.seeds,
            ):
                architecture = REGISTRY[entry.architecture]
                try:
                    architecture.check_width(hyperparameters, d_in[site], d_sae)
                    check_target(hyperparameters, d_sae)
                except ValueError as error:
                    raise UserError(f"saes.{index}.{error}") from error
                sparse = entry.target is None and architecture.gated_relu(hyperparameters, objective) is not None
                if settings.engine != "dense" and not sparse:
                    kind = f"{entry.architecture} SAEs" if entry.target is None else "transcoders"
                    raise UserError(f"saes.{index}.engine: {settings.engine} has no {kind}; engine: dense has")
                if architecture.parent_architecture is not None:
                    children[len(trials)] = f"saes.{index}"
                trials.append(
                    TrialSpec.make(
                        site=entry.site_of(site).name,
                        architecture=entry.architecture,
                        d_in=d_in[site],
                        d_sae=d_sae,
                        **({} if entry.target is None else {"d_out": d_in[target], "skip": skip}),
                        hyperparameters=architecture.canonical(hyperparameters, objective, d_sae),
                        training=settings.resolve(lr, seed, objective, schedule),
                        overrides=overrides,
                        identity=identity,
                    )
                )
        roots = [trial for i, trial in enumerate(trials) if i not in children]
        model = None if self.model is None else self.model.name
        for place, where in children.items():
            trials[place] = with_parent(trials[place], where, roots, parents or {}, model)
        check_distinct(trials)
        check_pursuit(trials, self.evaluation.pursuit_l0 or ())
        check_features(trials, self.evaluation.features)
        check_scheduler(trials, self.scheduler)
        return trials
