"""The finished SAE that a trial starts from, where its architecture needs one: a trial of the same sweep, or a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gsae_ray.config.recipe import show
from gsae_ray.config.trial import PARENT, RUN, TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.files import digest
from gsae_ray.saes import REGISTRY, SAEConfig
from gsae_ray.saes.architecture import TARGET_L0


def with_parent(
    trial: TrialSpec,
    where: str,
    candidates: Sequence[TrialSpec],
    runs: Mapping[str, tuple[SAEConfig, str]],
    model: str | None,
) -> TrialSpec:
    """The trial with the finished SAE that it starts from.

    Args:
        trial: a trial of an architecture that needs a parent.
        where: where the sweep file has its entry, for messages.
        candidates: the trials of the sweep that may be a parent.
        runs: run id -> the SAE's configuration and a hash of it.
        model: name of the language model; None where it is not known.

    Raises:
        UserError: there is none, there are several, or it is of another model, site, architecture, shape or objective.
    """
    architecture = REGISTRY[trial.architecture].parent_architecture
    sparsity = _sparsity_hyperparameter(trial.architecture)
    run_id: str | None = trial.hyperparameters.get(PARENT)
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
        of_model = cfg.section("model").get("name", model)
        if model is not None and of_model != model:
            raise UserError(f"{where}.parent: the SAE of run {run_id} is of model {of_model!r}, not of {model!r}")
        training = cfg.section("training")
        objective, recipe = training.get("objective", trial.training.objective), training.get("recipe")
        found_for = cfg.hyperparameters.get(TARGET_L0)
        of_parent = found_for or cfg.hyperparameters.get(_sparsity_hyperparameter(cfg.architecture))
        if of_parent is None:
            raise UserError(
                f"{where}.parent: the SAE of run {run_id} was not trained here: its {sparsity} is not known"
            )
        l1_units = training.get("l1_units", trial.training.l1_units)
        trial = dataclasses.replace(
            trial,
            hyperparameters=_of_parent(trial.hyperparameters, sparsity, float(of_parent), found_for is not None),
            training=trial.training.model_copy(update={"l1_units": l1_units}),
        )
    else:
        found = _parents_in_sweep(trial, candidates)
        if len(found) != 1:
            what = "no" if not found else f"{len(found)}"
            raise UserError(
                f"{where}: {what} {architecture} trial{'s' if len(found) > 1 else ''} of the same site ({trial.site}), "
                f"width ({trial.d_sae}), {trial.sparsity_key} ({_shown_sparsity(trial)}) and seed "
                f"({trial.training.seed}) to be the parent of a "
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


def _shown_sparsity(trial: TrialSpec) -> str:
    """What sets the sparsity, in words; of a coefficient with its units."""
    units = "" if trial.sparsity_key == TARGET_L0 else f", in l1_units {trial.training.l1_units}"
    return show(trial.sparsity) + units


def _of_parent(hyperparameters: Mapping[str, Any], sparsity: str, value: float, is_target: bool) -> dict[str, Any]:
    """Hyperparameters with the sparsity of a parent that is a run: its coefficient, or the L0 that it was asked for."""
    if not is_target:
        return {**hyperparameters, sparsity: value}
    return {TARGET_L0: value, **{key: other for key, other in hyperparameters.items() if key != sparsity}}


def _sparsity_hyperparameter(architecture: str) -> str:
    """Name of the hyperparameter that sets the sparsity, in which parent and child agree."""
    name = REGISTRY[architecture].sparsity_hyperparameter
    assert name is not None, f"{architecture} has no sparsity_hyperparameter"
    return name


def _parents_in_sweep(trial: TrialSpec, candidates: Sequence[TrialSpec]) -> list[TrialSpec]:
    """The candidates with the trial's site, width, sparsity and seed; of several, those whose training is nearest."""

    def same(spec: TrialSpec) -> tuple[Any, ...]:
        units = None if spec.sparsity_key == TARGET_L0 else spec.training.l1_units
        return (spec.site, spec.d_sae, spec.sparsity_key, spec.sparsity, units, spec.training.seed)

    architecture = REGISTRY[trial.architecture].parent_architecture
    found = [c for c in candidates if c.architecture == architecture and same(c) == same(trial)]
    for setting in ("objective", "schedule", "lr", "tokens"):
        if len(found) > 1:
            nearer = [c for c in found if getattr(c.training, setting) == getattr(trial.training, setting)]
            found = nearer or found
    return found
