"""The sweep file: its schema, and how a sweep expands to its trials.

Every field's description is the documentation: `gsae-ray run --help` prints these models.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gsae_ray.activations.sites import POINTS, Site
from gsae_ray.errors import UserError, suggest
from gsae_ray.files import digest
from gsae_ray.saes import REGISTRY

T = TypeVar("T")


# ---- values ---------------------------------------------------------------------------------------------------------


def _whole(value: object) -> object:
    """1e9 in YAML is a float; a count may be written so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def expand_grid(value: object) -> object:
    """A list stands for itself, a scalar for a list of one; `log_range` and `log_uniform` spell lists."""
    if not isinstance(value, Mapping):
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)
    forms = {"log_range": {"log_range", "n"}, "log_uniform": {"log_uniform", "n", "seed"}}
    form = next((f for f in forms if f in value), None)
    if form is None or set(value) - forms[form] or "n" not in value:
        raise ValueError(
            "a grid is a value, a list, {log_range: [low, high], n: 5} or {log_uniform: [low, high], n: 8, seed: 0}"
        )
    bounds, n = value[form], value["n"]
    is_range = isinstance(bounds, (list, tuple)) and len(bounds) == 2
    if (
        not is_range
        or not all(isinstance(b, (int, float)) for b in bounds)
        or not 0 < bounds[0] <= bounds[1] < math.inf
    ):
        raise ValueError(f"{form} needs finite [low, high] with 0 < low <= high")
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n is {n!r}; {form} needs a whole number of at least 1")
    low, high = (math.log(float(b)) for b in bounds)
    if form == "log_range":
        points = np.linspace(low, high, n)
    else:
        seed = value.get("seed", 0)
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed!r}; {form} needs a whole number of at least 0")
        points = np.sort(np.random.RandomState(seed).uniform(low, high, n))
    # Six significant digits: names and identities stay short, and do not hang on the last bit of exp.
    return tuple(float(f"{math.exp(p):.6g}") for p in points)


def _unique(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("an empty list; give at least one value")
    if any(value in values[:i] for i, value in enumerate(values)):  # they need not be hashable
        raise ValueError(f"a value stands twice in {list(values)}")
    return values


Grid = Annotated[tuple[T, ...], BeforeValidator(expand_grid), pydantic.AfterValidator(_unique)]
"""A list of values to sweep over, or what stands for one (see `expand_grid`)."""


class Settings(BaseModel):
    """Strict: an unknown key or a value of another type is an error, never a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# ---- the parts of a sweep file --------------------------------------------------------------------------------------


class ModelSettings(Settings):
    """The language model."""

    name: str = Field(description="`builtin`, a local directory, or a model of the Hugging Face hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    context_size: Count = Field(128, ge=3, description="tokens of a context; documents are packed to it")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the weights, the forward pass and the activations that trials receive"
    )
    attn_implementation: Literal["sdpa", "eager"] | None = Field(
        None, description="attention kernel of transformers; default: sdpa where the model has it, else eager"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class DatasetSettings(Settings):
    """The text, and the rows that are made of it."""

    name: str = Field(
        description="`builtin`, a data set of the hub, or local files: a .txt/.jsonl/.json/.parquet path or glob "
        "(relative to the working directory)"
    )
    subset: str | None = Field(None, description="the hub data set's configuration; like revision, for the hub only")
    split: str = Field("train", description="the split to train on")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    streaming: bool = Field(False, description="read from the hub while tokenising, without downloading it whole")
    text_column: str = Field("text", description="the column that holds a document's text")
    tokens_column: str | None = Field(None, description="pre-tokenised data: the column of token ids, instead of text")
    seed: Seed = Field(0, description="order of documents and of rows; the same for every trial of the sweep")
    shuffle_tokens: Count | None = Field(
        None, description="rows of a block, within which rows are shuffled; default min(1e6, training.tokens / 4)"
    )
    repeat: bool = Field(False, description="start again when the data ends, instead of refusing")
    prepend_bos: bool | None = Field(
        None, description="begin each context with the BOS token; default: as the tokenizer itself does"
    )
    skip_first_position: bool = Field(True, description="drop position 0 of every context from the rows")
    skip_special_tokens: bool = Field(True, description="drop the positions of special tokens from the rows")


class ModuleSite(Settings):
    """Any module of the model, by path."""

    module: str = Field(description="as in `model.named_modules()`, e.g. model.layers.3.mlp")
    io: Literal["input", "output"] = Field("output", description="which side of it")


class SiteSettings(Settings):
    """Where SAEs are trained: every point of every layer, and modules by path."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="layers, from 0")
    points: tuple[str, ...] = Field((), description=f"points of a layer: {', '.join(POINTS)}")
    modules: tuple[ModuleSite, ...] = Field((), description="further sites, as {module: path, io: input|output}")

    @pydantic.field_validator("layers", "points", "modules", mode="before")
    @classmethod
    def _lists(cls, value: object) -> object:
        return expand_grid(value) if not isinstance(value, Mapping) else value

    @pydantic.field_validator("points")
    @classmethod
    def _known_points(cls, points: tuple[str, ...]) -> tuple[str, ...]:
        for point in points:
            if point not in POINTS:
                raise ValueError(f"unknown point {point!r}; {suggest(point, POINTS)}")
        return points

    def sites(self) -> tuple[Site, ...]:
        named = [Site.of_point(layer, point) for layer in self.layers for point in self.points]
        return tuple(dict.fromkeys([*named, *(Site.of_module(m.module, m.io) for m in self.modules)]))

    def selects(self, site: Site) -> bool:
        """As a filter: an absent list lets everything through."""
        if site.layer is None:
            return site in self.sites() if self.modules else not (self.layers or self.points)
        if self.modules and not (self.layers or self.points):
            return False
        return (not self.layers or site.layer in self.layers) and (not self.points or site.point in self.points)


class TrainingSettings(Settings):
    """How an SAE is trained. Every entry of `saes` may override any of these."""

    tokens: Count = Field(description="rows that a trial trains on")
    batch_size: Count = Field(4096, description="rows of an optimiser step")
    lr: Grid[Annotated[float, Field(gt=0)]] = Field((3e-4,), description="peak learning rate; a list is a grid")
    seeds: Grid[Seed] = Field((0,), description="seeds of the initialisation; a list is a grid")
    lr_warmup: Fraction = Field(0.01, description="fraction of the run over which lr rises (cosine, from 0.1 x)")
    lr_decay: Fraction = Field(0.2, description="fraction of the run, at its end, over which lr falls to 0 (linear)")
    l1_warmup: Fraction = Field(0.05, description="fraction of the run over which the sparsity coefficient rises")
    adam_betas: tuple[float, float] = Field((0.0, 0.999), description="Adam's beta 1 and 2 (the paper: 0, 0.999)")
    log_every_tokens: Count | None = Field(
        None, description="rows between two metric rows; default: a fortieth of the run"
    )
    checkpoint_every_tokens: Count | None = Field(
        None, description="rows between two checkpoints, a multiple of log_every_tokens; default: ten intervals"
    )

    @pydantic.field_validator("adam_betas", mode="before")
    @classmethod
    def _betas(cls, value: object) -> object:
        # [0, 0.999] in YAML starts with an int, which torch refuses.
        return tuple(float(v) if isinstance(v, int) else v for v in value) if isinstance(value, list) else value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if self.lr_warmup + self.lr_decay > 1:
            raise ValueError(f"lr_warmup + lr_decay = {self.lr_warmup + self.lr_decay:g}; they may take at most 1")
        if self.tokens < self.batch_size:
            raise ValueError(f"tokens: {self.tokens} is less than one batch of {self.batch_size}")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas: {list(self.adam_betas)}; each must be at least 0 and below 1")
        return self


class TrialTraining(Settings):
    """`TrainingSettings` of one trial: no grids, nothing left open; intervals are whole numbers of batches."""

    tokens: int
    batch_size: int
    lr: float
    seed: int
    lr_warmup: float
    lr_decay: float
    l1_warmup: float
    adam_betas: tuple[float, float]
    log_every_tokens: int
    checkpoint_every_tokens: int

    @property
    def steps(self) -> int:
        """Optimiser steps; rows that do not fill a batch are left."""
        return self.tokens // self.batch_size

    @property
    def trained_tokens(self) -> int:
        """Rows of the stream that the trial reads."""
        return self.steps * self.batch_size


class SAESettings(Settings):
    """One family of SAEs: architecture x widths x sparsity. Fields of `training` may be overridden here."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    architecture: str = Field(description=f"one of: {', '.join(REGISTRY)}")
    widths: Grid[Count] | None = Field(None, description="numbers of features (d_sae); a list is a grid")
    expansion_factors: Grid[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="instead of widths: multiples of the site's own width"
    )
    sites: SiteSettings | None = Field(None, description="a filter: only these layers, points or modules of `sites`")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Sorts the architecture's own hyperparameters and training overrides from the rest, and checks their names."""
        if not isinstance(value, Mapping) or not isinstance(value.get("architecture"), str):
            return value
        architecture = value["architecture"]
        if architecture not in REGISTRY:
            raise ValueError(f"unknown architecture {architecture!r}; {suggest(architecture, REGISTRY)}")
        own = REGISTRY[architecture].Hyperparameters.model_fields
        known = {**cls.model_fields, **own, **TrainingSettings.model_fields}
        for key in value:
            if key not in known:
                raise ValueError(f"unknown key {key!r}; {suggest(key, known)}")
        missing = [key for key, field in own.items() if field.is_required() and key not in value]
        if missing:
            raise ValueError(f"{missing[0]} is missing; a {architecture} SAE needs it: {own[missing[0]].description}")
        return value

    @pydantic.model_validator(mode="after")
    def _checked(self) -> SAESettings:
        if (self.widths is None) == (self.expansion_factors is None):
            raise ValueError("give either widths or expansion_factors")
        self.hyperparameters()
        return self

    def hyperparameters(self) -> list[dict[str, Any]]:
        """Every combination of the architecture's own hyperparameters."""
        model = REGISTRY[self.architecture].Hyperparameters
        extra = self.model_extra or {}
        grids: dict[str, tuple[Any, ...]] = {}
        for key in (key for key in model.model_fields if key in extra):
            try:
                grid: Any = expand_grid(extra[key])
                grids[key] = _unique(grid)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        return [
            model.model_validate(dict(zip(grids, values, strict=True))).model_dump()
            for values in itertools.product(*grids.values())
        ]

    def training(self, base: TrainingSettings) -> TrainingSettings:
        overrides = {k: v for k, v in (self.model_extra or {}).items() if k in TrainingSettings.model_fields}
        merged = {key: getattr(base, key) for key in base.model_fields_set} | overrides
        return TrainingSettings.model_validate(merged)


class EvaluationSettings(Settings):
    """What every SAE of a site is measured on: the same held-out tokens."""

    tokens: Count = Field(1_000_000, description="rows to evaluate on")
    split: str | None = Field(
        None, description="the data set's held-out split; default: `heldout` of the built-in text, else `fraction`"
    )
    fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="without a split: the share of documents, chosen by hash, that is held out of training"
    )
    every_tokens: Count | None = Field(None, description="evaluate during training too, every so many rows")
    batch: Count = Field(8, description="contexts of a forward pass; small, since all logits of a pass are in memory")
    pursuit_l0: Grid[Count] | None = Field(
        None,
        description="evaluate each finished SAE again with gradient pursuit in its encoder's place, at these L0s "
        "(`frontier --encoder pursuit`); default: not",
    )

    @property
    def encoders(self) -> tuple[int | None, ...]:
        """What each finished SAE is evaluated with: None for its own encoder, then the L0s of gradient pursuit."""
        return (None, *(self.pursuit_l0 or ()))


def _whole_or_part(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"{gpus:g} GPUs; give a fraction up to 1, or a whole number")
    return gpus


GPUs = Annotated[float, Field(ge=0), pydantic.AfterValidator(_whole_or_part)]


class ProducerSettings(Settings):
    """The actors that run the language model."""

    count: Count = Field(1, description="how many producers, each with a copy of the model")
    cpus: Count = Field(1, description="threads of a producer; fixed, since the last bits of a sum depend on it")
    gpus: GPUs = Field(0, description="GPUs of a producer; 0 runs it on the CPU")
    batch: Count = Field(32, description="contexts of a forward pass; fixed for the same reason")
    chunk_mib: Count = Field(32, description="size of the chunks in which activations travel")
    budget_gib: Annotated[float, Field(gt=0)] | None = Field(
        None, description="activations kept for late trials; default: all, if 60 % of the object store holds them"
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(
        600, description="a block or an evaluation that takes longer means that the producer hangs"
    )


class TrialSettings(Settings):
    """The processes that train SAEs, one SAE each."""

    cpus: Count = Field(1, description="cores, and threads, of a trial")
    gpus: GPUs = Field(0, description="GPUs, or a fraction of one, of a trial; 0: CPU")
    max_concurrent: Count | None = Field(None, description="trials at a time; default: as many as fit")


class Sweep(Settings):
    """A sweep file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="names the sweep and its folder in storage")
    experiment: str | None = Field(None, description="the MLflow experiment; default: the sweep's name")
    model: ModelSettings
    dataset: DatasetSettings
    sites: SiteSettings
    saes: tuple[SAESettings, ...] = Field(description="the SAEs to train at each site; a list of entries")
    training: TrainingSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    producers: ProducerSettings = ProducerSettings()
    trials: TrialSettings = TrialSettings()

    @pydantic.field_validator("saes", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Sweep:
        if not self.sites.sites():
            raise ValueError("sites: no site; give layers and points, or modules")
        if bool(self.sites.layers) != bool(self.sites.points):
            raise ValueError("sites: layers and points go together; one of them is missing")
        if not self.saes:
            raise ValueError("saes: an empty list; give at least one entry")
        for index, entry in enumerate(self.saes):
            if not any(entry.sites is None or entry.sites.selects(site) for site in self.sites.sites()):
                raise ValueError(f"saes.{index}.sites: this filter leaves none of the sweep's sites")
            for key in ("layers", "points", "modules"):
                for value in getattr(entry.sites, key, ()):
                    if value not in getattr(self.sites, key):
                        raise ValueError(f"saes.{index}.sites.{key}: {value!r} is not among the sweep's own sites")
            try:
                entry.training(self.training)
            except pydantic.ValidationError as error:
                raise ValueError(f"saes.{index}: {explain(error)}") from error
        return self

    @property
    def experiment_name(self) -> str:
        return self.experiment or self.name

    @property
    def shuffle_tokens(self) -> int:
        """Rows of a block, about. From the file's own `training.tokens`, never from what other trials need."""
        return self.dataset.shuffle_tokens or max(1, min(1_000_000, self.training.tokens // 4))

    @property
    def used_sites(self) -> tuple[Site, ...]:
        """The sites that some entry of `saes` trains at, in the file's order."""
        return tuple(
            site
            for site in self.sites.sites()
            if any(entry.sites is None or entry.sites.selects(site) for entry in self.saes)
        )

    def max_tokens(self, site: Site) -> int:
        """Rows of the longest trial at `site`."""
        entries = [entry for entry in self.saes if entry.sites is None or entry.sites.selects(site)]
        return max(entry.training(self.training).tokens for entry in entries)

    def expand(self, d_in: Mapping[Site, int], provenance: Mapping[str, str]) -> list[TrialSpec]:
        """The trials, in a fixed order: by entry, site, width, hyperparameters, lr, seed.

        Args:
            d_in: width of the activations at each of `used_sites`.
            provenance: what besides the file decides a trial's weights (fingerprints of model and tokens).
        Raises:
            UserError: two entries describe the same trial.
        """
        forward = {"batch": self.producers.batch, "threads": self.producers.cpus, "gpu": self.producers.gpus > 0}
        process = {"threads": self.trials.cpus, "gpu": self.trials.gpus > 0}
        trials: dict[str, TrialSpec] = {}
        for entry, site in itertools.product(self.saes, self.used_sites):
            if entry.sites is not None and not entry.sites.selects(site):
                continue
            settings = entry.training(self.training)
            unnamed = {"lr", "seeds", "log_every_tokens", "checkpoint_every_tokens"}
            overrides = {k: v for k, v in settings if k not in unnamed and v != getattr(self.training, k)}
            widths = entry.widths or tuple(round(factor * d_in[site]) for factor in entry.expansion_factors or ())
            if not all(widths):
                factor = min(entry.expansion_factors or ())
                raise UserError(f"saes: expansion_factors: {factor:g} times the {d_in[site]} of {site} rounds to 0")
            for d_sae, hyperparameters, lr, seed in itertools.product(
                widths, entry.hyperparameters(), settings.lr, settings.seeds
            ):
                trial = TrialSpec.make(
                    site=site.name,
                    architecture=entry.architecture,
                    d_in=d_in[site],
                    d_sae=d_sae,
                    hyperparameters=hyperparameters,
                    training=_resolve(settings, lr, seed),
                    overrides=overrides,
                    identity={**provenance, "forward": forward, "process": process},
                )
                if trial.name in trials:
                    raise UserError(f"saes: two entries describe the trial {trial.name}")
                trials[trial.name] = trial
        return list(trials.values())


def _resolve(settings: TrainingSettings, lr: float, seed: int) -> TrialTraining:
    def whole_batches(tokens: float) -> int:
        return max(1, round(tokens / settings.batch_size)) * settings.batch_size

    log_every = whole_batches(settings.log_every_tokens or settings.tokens / 40)
    checkpoint_every = settings.checkpoint_every_tokens or 10 * log_every
    return TrialTraining(
        **{k: v for k, v in settings if k in TrialTraining.model_fields}
        | {"lr": lr, "seed": seed, "log_every_tokens": log_every}
        | {"checkpoint_every_tokens": max(1, round(checkpoint_every / log_every)) * log_every}
    )


@dataclasses.dataclass(frozen=True)
class TrialSpec:
    """One SAE to train: everything that decides its weights."""

    name: str
    """Readable and unique within a sweep."""
    identity: str
    """Hash of model, data, site, SAE and training settings: the same identity is the same SAE."""
    site: str
    architecture: str
    d_in: int
    d_sae: int
    hyperparameters: dict[str, Any]
    training: TrialTraining

    @classmethod
    def make(
        cls, *, identity: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, **fields: Any
    ) -> TrialSpec:
        training: TrialTraining = fields["training"]
        settings = {**fields, "training": training.model_dump(mode="json"), **identity}
        # How often metrics and checkpoints are written does not change the weights.
        for key in ("log_every_tokens", "checkpoint_every_tokens"):
            settings["training"].pop(key)
        sparsity = "_".join(f"{key}{_short(value)}" for key, value in fields["hyperparameters"].items())
        sparsity = sparsity.replace("l1_coefficient", "l1-")
        rest = f"lr{_short(training.lr)}_seed{training.seed}"
        rest += "".join(f"_{key}{_short(value)}" for key, value in (overrides or {}).items())
        name = f"{fields['site']}_{fields['architecture']}_w{fields['d_sae']}_{sparsity}_{rest}"
        return cls(name=re.sub(r"[^A-Za-z0-9_.\-]", "-", name), identity=digest(settings)[:16], **fields)

    @property
    def directory_name(self) -> str:
        return f"{self.name}-{self.identity[:8]}"

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "training": self.training.model_dump(mode="json")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrialSpec:
        training = {**value["training"], "adam_betas": tuple(value["training"]["adam_betas"])}
        return cls(**{**value, "training": TrialTraining(**training)})


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- reading --------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number and a key that stands twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # While composing: later, merge keys (<<) have put others' keys among the mapping's own.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"key {key.value!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
# A date is a string here: no key takes one, and sweeps get named after them.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: e.g. !!int x
        raise UserError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from error


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file.

    Args:
        overrides: `path.to.key=value`, the value in YAML; list items by index (`saes.0.l1_coefficient=[1,2]`).
    Raises:
        UserError: the file cannot be read, or something in it is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"{path}: cannot read this sweep file: {reason}") from error
    data = _parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: a sweep file is a mapping of {', '.join(Sweep.model_fields)}")
    for override in overrides:
        _override(data, override)
    try:
        return Sweep.model_validate(data)
    except pydantic.ValidationError as error:
        raise UserError(f"{path}: {explain(error)}") from error


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected path.to.key=value")
    *path, last = key.split(".")
    node: Any = data
    for depth, part in enumerate(path):
        if isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        else:
            node = node[_index(node, part, key, depth)]
        if not isinstance(node, (dict, list)):
            raise UserError(f"--set {key}: {'.'.join(path[: depth + 1])} is {node!r}, which has no keys")
    parsed = _parse_yaml(value, f"--set {key}")
    node[last if isinstance(node, dict) else _index(node, last, key, len(path))] = parsed


def _index(items: list[Any], part: str, key: str, depth: int) -> int:
    if not part.isdigit() or int(part) >= len(items):
        where = ".".join(key.split(".")[:depth])
        raise UserError(f"--set {key}: {where} is a list of {len(items)}; {part!r} should be 0 to {len(items) - 1}")
    return int(part)


def _fields_at(location: Sequence[str | int]) -> Mapping[str, pydantic.fields.FieldInfo]:
    """The fields known at a place in a sweep file, for suggestions."""
    model: Any = Sweep
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return {}
        model = next(iter(_models_in(field.annotation)), None)
    return getattr(model, "model_fields", {})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def explain(error: pydantic.ValidationError) -> str:
    """The first problem in one line: key, value, and what would be right; the number of further ones."""
    problems = error.errors(include_url=False)
    # A misspelt key that is required is missing too: the misspelling says more.
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "extra_forbidden":
            known = _fields_at(first["loc"][:-1])
            line = f"{key}: unknown key; {suggest(first['loc'][-1], known)}"
        case "missing":
            known = _fields_at(first["loc"][:-1])
            description = known[str(first["loc"][-1])].description if str(first["loc"][-1]) in known else None
            line = f"{key}: missing{f'; {description}' if description else ''}"
        case "value_error":
            line = f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
        case "literal_error":
            line = f"{key}: {first['input']!r} should be {first['ctx']['expected']}"
        case _:
            _, _, what = first["msg"].partition(" should ")
            line = f"{key}: {first['input']!r} should {what}" if what else f"{key}: {first['input']!r}: {first['msg']}"
    more = len(problems) - 1
    return line + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def describe(model: type[BaseModel] = Sweep) -> str:
    """The schema as text, from the fields' descriptions."""
    lines = []
    for name, field in model.model_fields.items():
        nested = next(_models_in(field.annotation), None)
        default = "" if field.is_required() or nested else f" [{_default(field.default)}]"
        lines.append(f"{name}:{default} {field.description or (nested.__doc__ if nested else '')}".rstrip())
        if nested is not None and not (model is SAESettings and nested is SiteSettings):
            lines.extend("  " + line for line in describe(nested).splitlines())
    if model is SAESettings:
        for architecture, sae in REGISTRY.items():
            for name, field in sae.Hyperparameters.model_fields.items():
                lines.append(f"{name}: {field.description} ({architecture})")
    return "\n".join(lines)


def _default(value: object) -> str:
    """A default as a sweep file would spell it."""
    if isinstance(value, tuple):
        return _default(value[0]) if len(value) == 1 else f"[{', '.join(map(_default, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "auto", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
