"""A trial: one SAE to train, its name, its identity, and the finished SAE that it starts from."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gsae_ray.config.recipe import TrialTraining, show
from gsae_ray.errors import UserError
from gsae_ray.files import digest
from gsae_ray.saes import REGISTRY, SAEConfig
from gsae_ray.version import REVISION

MAX_NAME = 200
_PLAIN_SITE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(:input|:output)?")
"""A site whose name no other one has once it is fit for a folder."""
RUN = "run:"
"""How `TrialSpec.parent` begins where it is a run."""
SPARSITY = ("l1_coefficient", "parent")
"""Hyperparameters that are no option of an architecture, though they may be left out."""


def _options(architecture: str) -> dict[str, Any]:
    """An architecture's options, by which its variants differ, and their defaults."""
    fields = REGISTRY[architecture].Hyperparameters.model_fields
    return {key: f.default for key, f in fields.items() if not f.is_required() and key not in SPARSITY}


def _variant(architecture: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that are not at their defaults."""
    options = _options(architecture)
    return {k: hyperparameters[k] for k in options if hyperparameters.get(k, options[k]) != options[k]}


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
    parent: str | None = None
    """The trial of the same sweep, or the run (`run:…`), whose finished SAE training starts from."""
    parent_recipe: str | None = None

    @classmethod
    def make(
        cls, *, identity: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, **fields: Any
    ) -> TrialSpec:
        training: TrialTraining = fields["training"]
        hyperparameters: dict[str, Any] = fields["hyperparameters"]
        settings = {**fields, "training": training.model_dump(mode="json"), **identity, "revision": REVISION}
        # How often metrics and checkpoints are written does not change the weights.
        for key in ("log_every_tokens", "checkpoint_every_tokens"):
            settings["training"].pop(key)
        options = _options(fields["architecture"])
        variant = _variant(fields["architecture"], hyperparameters)
        sparsity = "_".join(f"{k}{show(v)}" for k, v in hyperparameters.items() if k not in options and v is not None)
        sparsity = sparsity.replace("l1_coefficient", "l1-")
        sparsity += "".join(f"_{k}-{show(v)}" for k, v in variant.items())
        rest = f"{training.objective}-{training.schedule}_lr{show(training.lr)}_seed{training.seed}"
        rest += "".join(f"_{key}{show(value)}" for key, value in (overrides or {}).items())
        name = f"{fields['site']}_{fields['architecture']}_w{fields['d_sae']}_{sparsity}_{rest}"
        plain = re.sub(r"^\.|[^A-Za-z0-9_.\-]", "-", name)
        if len(plain) > MAX_NAME or not _PLAIN_SITE.fullmatch(fields["site"]):  # file names end at 255 bytes
            plain = f"{plain[: MAX_NAME - 9]}_{digest(name)[:8]}"
        return cls(name=plain, identity=digest(settings)[:16], **fields)

    @property
    def follows(self) -> bool:
        """Whether it waits for another trial of the sweep."""
        return self.parent is not None and not self.parent.startswith(RUN)

    @property
    def recipe(self) -> str:
        """Of the training; where that started from an SAE of another recipe, of both."""
        own = self.training.recipe
        return own if self.parent_recipe in (None, own) else f"{own} after {self.parent_recipe}"

    @property
    def variant(self) -> str:
        """Options of the architecture that are not at their defaults, e.g. `tied=false`."""
        variant = _variant(self.architecture, self.hyperparameters)
        return ",".join(f"{key}={show(value)}" for key, value in variant.items())

    @property
    def directory_name(self) -> str:
        return f"{self.name}-{self.identity[:8]}"

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "training": self.training.model_dump(mode="json")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrialSpec:
        training = TrialTraining.model_validate_json(json.dumps(value["training"]))
        return cls(**{**value, "training": training})


def with_parent(
    trial: TrialSpec,
    where: str,
    candidates: Sequence[TrialSpec],
    runs: Mapping[str, tuple[SAEConfig, str]],
    model: str,
) -> TrialSpec:
    """The trial, with the finished SAE that it starts from.

    Raises:
        UserError: there is none, there are several, or it is of another model, site, architecture, shape or objective.
    """
    architecture = REGISTRY[trial.architecture].parent_architecture
    run_id: str | None = trial.hyperparameters.get("parent")
    if run_id is not None:
        cfg, fingerprint = runs[run_id]
        wanted = {"architecture": architecture, "site": trial.site, "d_in": trial.d_in, "d_sae": trial.d_sae}
        for key, value in wanted.items():
            if getattr(cfg, key) != value:
                raise UserError(
                    f"{where}.parent: the SAE of run {run_id} has {key} {getattr(cfg, key)}; this "
                    f"{trial.architecture} trial needs {value}"
                )
        parent = RUN + run_id
        of_model = _part(cfg, "model").get("name", model)
        if of_model != model:
            raise UserError(f"{where}.parent: the SAE of run {run_id} is of model {of_model!r}, not of {model!r}")
        training = _part(cfg, "training")
        objective, recipe = training.get("objective", trial.training.objective), training.get("recipe")
        l1_coefficient = float(cfg.hyperparameters["l1_coefficient"])
        l1_units = training.get("l1_units", trial.training.l1_units)
        trial = dataclasses.replace(
            trial,
            hyperparameters={**trial.hyperparameters, "l1_coefficient": l1_coefficient},
            training=trial.training.model_copy(update={"l1_units": l1_units}),
        )
    else:
        found = _parents_in_sweep(trial, candidates)
        if len(found) != 1:
            what = "no" if not found else f"{len(found)}"
            raise UserError(
                f"{where}: {what} {architecture} trial{'s' if len(found) > 1 else ''} of the same site ({trial.site}), "
                f"width ({trial.d_sae}), l1_coefficient ({show(trial.hyperparameters['l1_coefficient'])}, in "
                f"l1_units {trial.training.l1_units}) and seed ({trial.training.seed}) to be the parent of a "
                f"{trial.architecture} trial; there must be exactly one in the sweep, or name a run: parent"
            )
        parent, fingerprint = found[0].name, found[0].identity
        objective, recipe = found[0].training.objective, found[0].recipe
    if objective != trial.training.objective:
        raise UserError(
            f"{where}: the parent {parent} was trained with objective {objective}, this {trial.architecture} trial "
            f"says {trial.training.objective}; give both the same"
        )
    identity = digest([trial.identity, fingerprint])[:16]
    return dataclasses.replace(trial, parent=parent, parent_recipe=recipe, identity=identity)


def _part(cfg: SAEConfig, key: str) -> dict[str, Any]:
    """Of an SAE's metadata, which is anything in one that was not saved by a sweep."""
    part = cfg.metadata.get(key)
    return part if isinstance(part, dict) else {}


def _parents_in_sweep(trial: TrialSpec, candidates: Sequence[TrialSpec]) -> list[TrialSpec]:
    """Those that may be the trial's parent: the nearest, where several are of the same site, width, λ and seed."""

    def same(spec: TrialSpec) -> tuple[Any, ...]:
        l1 = (spec.hyperparameters.get("l1_coefficient"), spec.training.l1_units)
        return (spec.site, spec.d_sae, l1, spec.training.seed)

    architecture = REGISTRY[trial.architecture].parent_architecture
    found = [c for c in candidates if c.architecture == architecture and same(c) == same(trial)]
    for setting in ("objective", "schedule", "lr", "tokens"):
        if len(found) > 1:
            nearer = [c for c in found if getattr(c.training, setting) == getattr(trial.training, setting)]
            found = nearer or found
    return found
