"""A trial: one SAE to train, its name and its identity."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from gsae_ray import saes  # its names are imported at first use: the registry imports torch
from gsae_ray.config.recipe import TrialTraining, show
from gsae_ray.config.site import Site
from gsae_ray.files import digest
from gsae_ray.saes.architecture import TARGET_L0
from gsae_ray.version import REVISION

MAX_NAME = 200
"""The most characters of a trial's name: file names end at 255 bytes."""
_PLAIN_SITE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(:input|:output)?|blocks\.[0-9]+\.[a-z_.]+:[a-z_.]+")
"""Names of sites that stay distinct once other characters are replaced, so that they are fit for a folder."""
RUN = "run:"
"""The beginning of `TrialSpec.parent` where the parent is an MLflow run."""
PARENT = "parent"
"""The hyperparameter that names the run that training starts from."""


def _options(architecture: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The options by which an architecture's variants differ, with their defaults."""
    sae = saes.REGISTRY[architecture]
    others = (
        sae.sparsity_hyperparameter,
        _sparsity_key(architecture, hyperparameters),
        PARENT,
    )  # no options, though they may be left out
    fields = sae.Hyperparameters.model_fields
    return {key: f.default for key, f in fields.items() if not f.is_required() and key not in others}


def _sparsity_key(architecture: str, hyperparameters: Mapping[str, Any]) -> str | None:
    """The hyperparameter that sets how sparse the features are; None where the architecture has none."""
    if TARGET_L0 in hyperparameters:
        return TARGET_L0
    return saes.REGISTRY[architecture].sparsity_key(hyperparameters)


def _short(key: str) -> str:
    """The name of a hyperparameter before its value: `l1-` of l1_coefficient, `k` of k."""
    short = re.sub("_coefficient$", "-", key)
    return f"{short}-" if short[-1].isdigit() else short


def _variant(architecture: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not at their defaults."""
    options = _options(architecture, hyperparameters)
    return {k: hyperparameters[k] for k in options if hyperparameters.get(k, options[k]) != options[k]}


@dataclasses.dataclass(frozen=True)
class TrialSpec:
    """One SAE to train: everything that decides its weights."""

    name: str
    """Readable and unique within a sweep."""
    identity: str
    """Hash of model, data, site, SAE and training settings: the same identity is the same SAE."""
    site: str
    """As `Site` names it: of a transcoder, where it reads and where it writes."""
    architecture: str
    d_in: int
    d_sae: int
    hyperparameters: dict[str, Any]
    training: TrialTraining
    parent: str | None = None
    """The trial of the same sweep, or the run (`run:…`), whose finished SAE training starts from."""
    parent_recipe: str | None = None
    """The recipe that the parent was trained with."""
    d_out: int | None = None
    """Coordinates of what a transcoder computes; None: an SAE."""
    skip: bool = False
    """Whether a transcoder has a skip connection."""

    @classmethod
    def make(
        cls, *, identity: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, **fields: Any
    ) -> TrialSpec:
        """A trial with the name and identity that follow from its settings.

        Args:
            identity: what else decides its weights, such as fingerprints of model and tokens.
            overrides: settings of training that its entry overrides, for the name.
            **fields: the other fields.
        """
        training: TrialTraining = fields["training"]
        hyperparameters: dict[str, Any] = fields["hyperparameters"]
        settings = {**fields, "training": training.model_dump(mode="json"), **identity, "revision": REVISION}
        # How often metrics and checkpoints are written does not change the weights, nor what is kept on the way.
        for key in ("log_every_tokens", "checkpoint_every_tokens", "snapshots_at"):
            settings["training"].pop(key)
        if training.engine == "dense":  # trials from before there was another have no such key
            settings["training"].pop("engine")
        if training.precision == "float32":  # nor this one
            settings["training"].pop("precision")
        options = _options(fields["architecture"], hyperparameters)
        variant = _variant(fields["architecture"], hyperparameters)
        shown = {key: value for key, value in hyperparameters.items() if key not in options and value is not None}
        sparsity = "_".join(_short(key) + show(value) for key, value in shown.items())
        sparsity += "".join(f"_{k}-{show(v)}" for k, v in variant.items()) + "_skip" * fields.get("skip", False)
        rest = f"{training.objective}-{training.schedule}_lr{show(training.lr)}_seed{training.seed}"
        rest += "".join(f"_{key}{show(value)}" for key, value in (overrides or {}).items())
        name = f"{fields['site']}_{fields['architecture']}_w{fields['d_sae']}_{sparsity}_{rest}"
        plain = re.sub(r"^\.|[^A-Za-z0-9_.\-]", "-", name)
        if len(plain) > MAX_NAME or not _PLAIN_SITE.fullmatch(fields["site"]):
            plain = f"{plain[: MAX_NAME - 9]}_{digest(name)[:8]}"
        return cls(name=plain, identity=digest(settings)[:16], **fields)

    @property
    def sparsity_key(self) -> str | None:
        """The hyperparameter that sets how sparse the features are; None where the architecture has none."""
        return _sparsity_key(self.architecture, self.hyperparameters)

    @property
    def sparsity(self) -> Any:
        """Value of that hyperparameter; None where there is none."""
        return self.hyperparameters.get(self.sparsity_key or "")

    @property
    def follows(self) -> bool:
        """Whether it starts from the finished SAE of another trial of the sweep, and so waits for that."""
        return self.parent is not None and not self.parent.startswith(RUN)

    @property
    def recipe(self) -> str:
        """The recipe of the training; where it started from an SAE of another recipe, both."""
        own = self.training.recipe
        return own if self.parent_recipe in (None, own) else f"{own} after {self.parent_recipe}"

    @property
    def variant(self) -> str:
        """Options of the architecture that are not at their defaults, e.g. `tied=false`.

        Of a transcoder `transcoder`, or `skip transcoder`, comes first.
        """
        variant = _variant(self.architecture, self.hyperparameters)
        kind = [] if self.d_out is None else ["skip transcoder" if self.skip else "transcoder"]
        return ",".join([*kind, *(f"{key}={show(value)}" for key, value in variant.items())])

    @property
    def sites(self) -> tuple[str, ...]:
        """The places whose activations it is trained on: its site, or of a transcoder where it reads and writes."""
        return tuple(place.name for place in Site(self.site).places)

    @property
    def directory_name(self) -> str:
        return f"{self.name}-{self.identity[:8]}"

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "training": self.training.model_dump(mode="json")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrialSpec:
        training = TrialTraining.model_validate_json(json.dumps(value["training"]))
        return cls(**{**value, "training": training})
