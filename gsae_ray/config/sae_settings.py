"""An entry of `saes` in a sweep file: a family of SAEs to train."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from gsae_ray.config.explain import Key, refusal
from gsae_ray.config.recipe import TrainingSettings
from gsae_ray.config.site import Site, SiteSettings
from gsae_ray.config.transcoders import TargetSettings
from gsae_ray.errors import UserError, shown, suggest
from gsae_ray.fields import AtMost, Grid, Positive, Settings, expand_grid, expand_lists, takes_list, unique
from gsae_ray.saes import REGISTRY, trainable_architectures
from gsae_ray.saes.objective import Objective

MAX_TRIALS = 10_000
MAX_WIDTH = 10**9
Width = Annotated[Positive, AtMost(MAX_WIDTH, "an SAE's weights are in memory")]
Factor = Annotated[float, Field(gt=0), AtMost(1e6, "an SAE's weights are in memory")]


def check_count(trials: int) -> None:
    """Checks that a sweep may have so many trials.

    Raises:
        ValueError: it may not.
    """
    if trials > MAX_TRIALS:
        raise ValueError(f"{trials:,} trials; a sweep has at most {MAX_TRIALS:,}, each with files and a run of its own")


def _unknown(key: str, architecture: str, known: Collection[str]) -> str:
    """What is wrong with a key that an architecture does not have: it may be one of another's."""
    others = [name for name in trainable_architectures() if key in REGISTRY[name].Hyperparameters.model_fields]
    if not others:
        return f"unknown key; {suggest(key, known)}"
    own, sets_it = REGISTRY[architecture].sparsity_hyperparameter, {REGISTRY[o].sparsity_hyperparameter for o in others}
    instead = f"give {own}, which sets the sparsity of {architecture} SAEs" if key in sets_it else "leave it out"
    return f"unknown key for {architecture}, one of {', '.join(others)}; {instead}"


def _without_effect(architecture: str, entry: Mapping[str, Any]) -> list[tuple[Key, str]]:
    """The keys of an entry that training of such SAEs does not read, each with what to do."""
    sae, found = REGISTRY[architecture], {}
    if len(sae.objectives) == 1:
        found["objective"] = f"a {architecture} SAE has no choice of objectives; its decoder rows have norm 1"
    if sae.sparsity_units != "l1":
        found["l1_units"] = f"a {architecture} SAE has no L1 penalty"
    if sae.sparsity_units is None:
        found["l1_warmup"] = f"a {architecture} SAE has no sparsity penalty"
    return [((key,), f"{why}; leave it out") for key, why in found.items() if key in entry]


class SAESettings(Settings):
    """One family of SAEs: architecture x widths x sparsity. Fields of `training` may be overridden here."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    architecture: str = Field(description=f"one of: {', '.join(trainable_architectures())}")
    widths: Grid[Width] | None = Field(
        None,
        description="numbers of features (d_sae); a list is a grid; {equal_compute_with: gated}: 1.5 x the widths of "
        "this sweep's gated SAEs, the paper's convention for a standard SAE of equal training compute",
    )
    expansion_factors: Grid[Factor] | None = Field(
        None, description="instead of widths: multiples of the site's own width"
    )
    equal_compute_with: Literal["gated"] | None = Field(None, description="as widths: {equal_compute_with: gated}")
    sites: SiteSettings | None = Field(None, description="a filter: only these layers, points or modules of `sites`")
    target: TargetSettings | None = Field(
        None,
        description="train transcoders: {point: mlp_out} computes the MLP's output from what is read at the entry's "
        "sites (mlp_in, say), in the same layer; default: SAEs, which compute what they read",
    )
    skip: Grid[bool] = Field(
        (False,), description="of transcoders: true adds an affine skip connection, W_skip x; a grid"
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        """Checks the names of the keys, among which are the architecture's hyperparameters and those of `training`."""
        if not isinstance(value, Mapping) or not isinstance(value.get("architecture"), str):
            return value
        architecture = value["architecture"]
        known_ones = trainable_architectures()
        if architecture not in known_ones:
            what = f"unknown architecture {shown(architecture)}; {suggest(architecture, known_ones)}"
            raise refusal([(("architecture",), what)])
        own = REGISTRY[architecture].Hyperparameters.model_fields
        known = {**cls.model_fields, **own, **TrainingSettings.model_fields}
        unknown = [key for key in value if key not in known]
        missing = [key for key, field in own.items() if field.is_required() and key not in value]
        found: list[tuple[Key, str]] = [((key,), _unknown(key, architecture, known)) for key in unknown]
        if not unknown:  # one of them may be what is missing, misspelt
            found = [((key,), f"missing; a {architecture} SAE needs it: {own[key].description}") for key in missing]
        found += _without_effect(architecture, value)
        if found:
            raise refusal(found)
        widths = value.get("widths")
        if isinstance(widths, Mapping) and set(widths) == {"equal_compute_with"}:
            value = {**value, "widths": None, **widths}
        return value

    @pydantic.model_validator(mode="after")
    def _checked(self) -> SAESettings:
        if sum(value is not None for value in (self.widths, self.expansion_factors, self.equal_compute_with)) != 1:
            raise ValueError("give either widths or expansion_factors")
        if self.equal_compute_with and self.architecture != "standard":
            raise ValueError(f"widths.equal_compute_with: for standard SAEs, this entry's are {self.architecture}")
        if self.target is None and any(self.skip):
            raise ValueError("skip: true is for transcoders: give the entry a target, or leave skip out")
        if self.target is not None and (parent := REGISTRY[self.architecture].parent_architecture) is not None:
            raise ValueError(
                f"target: {self.architecture} starts from a finished {parent} SAE, and has no transcoders; leave it out"
            )
        self.hyperparameters()
        return self

    @property
    def has_objective(self) -> bool:
        """Whether its SAEs have more than one objective."""
        return len(REGISTRY[self.architecture].objectives) > 1

    def objectives(self, settings: TrainingSettings) -> tuple[Objective, ...]:
        """What is minimised: the grid of `settings`, the entry's training, where there is a choice."""
        return settings.objective if self.has_objective else REGISTRY[self.architecture].objectives

    def has_sparse_form(self, base: TrainingSettings) -> bool:
        """Whether engines for sparse activations can train all of its SAEs; `base` is `training` of the sweep."""
        if self.target is not None:
            return False
        gated_relu = REGISTRY[self.architecture].gated_relu
        objectives = self.objectives(self.training(base))
        return all(gated_relu(values, objective) for values in self.hyperparameters() for objective in objectives)

    def selects(self, site: Site) -> bool:
        """Whether the entry is trained at a site."""
        return self.sites is None or self.sites.selects(site)

    def site_of(self, site: Site) -> Site:
        """The site of the entry's SAEs that read at `site`: itself, but of transcoders also where they write."""
        return site if self.target is None else self.target.site_of(site)

    def of_model(self, n_layers: int, key: str, layers: tuple[int, ...]) -> SAESettings:
        """The same entry with the layers of its filter numbered from 0, for a model that has `n_layers`.

        Args:
            n_layers: how many layers the model has.
            key: where the sweep file names the layers, for messages.
            layers: the layers of the sweep, to which a range is cut.

        Raises:
            UserError: the model has no such layer, or none is left.
        """
        if self.sites is None:
            return self
        sites = self.sites.of_model(n_layers, key)
        if isinstance(self.sites.layers, dict):
            sites = sites.model_copy(update={"layers": tuple(n for n in sites.numbers if n in layers)})
            if not sites.layers:
                raise UserError(f"{key}: this filter leaves none of the sweep's sites")
        return self.model_copy(update={"sites": sites})

    def own_widths(self, site: Site, d_in: int) -> tuple[int, ...]:
        """The widths that the entry states by itself, for a site whose activations have `d_in` coordinates.

        Raises:
            UserError: a factor makes a width out of bounds.
        """
        if self.widths is not None:
            return self.widths
        for factor in self.expansion_factors or ():
            if not 1 <= round(factor * d_in) <= MAX_WIDTH:
                raise UserError(
                    f"saes: expansion_factors: {factor:g} times the {d_in} of {site} is a width of "
                    f"{round(factor * d_in)}; it should be 1 to {MAX_WIDTH:,}"
                )
        return tuple(round(factor * d_in) for factor in self.expansion_factors or ())

    def hyperparameters(self) -> list[dict[str, Any]]:
        """Every combination of the architecture's own hyperparameters."""
        model = REGISTRY[self.architecture].Hyperparameters
        extra = self.model_extra or {}
        grids: dict[str, tuple[Any, ...]] = {}
        for key in (key for key in model.model_fields if key in extra):
            try:
                is_list = takes_list(model.model_fields[key].annotation)
                grid: Any = expand_lists(extra[key]) if is_list else expand_grid(extra[key])
                grids[key] = unique(grid)
            except ValueError as error:
                raise refusal([((key,), str(error))]) from error
        check_count(math.prod(map(len, grids.values())))
        return [
            model.model_validate(dict(zip(grids, values, strict=True))).model_dump(mode="json")
            for values in itertools.product(*grids.values())
        ]

    def training(self, base: TrainingSettings) -> TrainingSettings:
        """The settings of `training`, with what this entry overrides."""
        overrides = {k: v for k, v in (self.model_extra or {}).items() if k in TrainingSettings.model_fields}
        merged = {key: getattr(base, key) for key in base.model_fields_set} | overrides
        return TrainingSettings.model_validate(merged)


def targets(saes: Sequence[SAESettings], sources: Sequence[Site]) -> dict[str, tuple[Site, ...]]:
    """Key of the sweep file -> the places that it names as targets, for each entry of transcoders.

    Args:
        saes: the entries.
        sources: the sweep's sites.
    """
    return {
        f"saes.{index}.target": tuple(entry.site_of(site).target for site in sources if entry.selects(site))
        for index, entry in enumerate(saes)
        if entry.target is not None
    }
