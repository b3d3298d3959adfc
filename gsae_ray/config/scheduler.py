"""Trials that may be stopped before their end: when they are compared, and with which others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

from pydantic import Field

from gsae_ray.config.recipe import TrialTraining, show
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.fields import Count, Settings

FIRST_SHARE = 0.25
"""The share of a run after which its trials are compared first, unless `grace_tokens` says something else."""
HELDOUT_SHARE = 0.25
"""The share of the held-out contexts that a comparison is made on: the first ones, the same for all."""

RUNG = "rung/"
"""What the names of metrics of a comparison begin with, in metric rows, results of trials and MLflow."""


class SchedulerSettings(Settings):
    """Trials that are stopped early; this section may be left out."""

    stop_dominated: bool = Field(
        False,
        description="stop a trial that another has clearly beaten, in L0 and in quality; the two are of one site, "
        "architecture, width and sparsity (target_l0, k or coefficient), and differ in lr or recipe",
    )
    grace_tokens: Count | None = Field(
        None,
        description="rows after which trials are compared first; again after twice as many, and so on. Default: a "
        "quarter of the run; no trial while its sparsity coefficient rises (l1_warmup)",
    )


def rungs(trial: TrialSpec, settings: SchedulerSettings) -> tuple[int, ...]:
    """The numbers of rows after which a trial is compared with others, each at its first metric row from there on.

    They are `grace_tokens` times powers of two, whatever the recipe: trials of one group meet. None for a trial that
    starts from the SAE of another.
    """
    training = trial.training
    if not settings.stop_dominated or trial.parent is not None:
        return ()
    found, tokens = [], settings.grace_tokens or math.ceil(FIRST_SHARE * training.trained_tokens)
    while tokens < _warm(training):  # which the file's own `grace_tokens` never is
        tokens *= 2
    while math.ceil(tokens / training.log_every_tokens) * training.log_every_tokens < training.trained_tokens:
        found.append(tokens)
        tokens *= 2
    return tuple(found)


def group_of(trial: TrialSpec) -> str:
    """What trials that are compared with each other have in common."""
    common = trial.site, trial.architecture, trial.variant, trial.d_sae, trial.training.trained_tokens
    return " ".join(map(show, (*common, trial.sparsity_key, trial.sparsity)))


def setting_of(trial: TrialSpec) -> str:
    """What trials have in common that differ in their seed only."""
    training = trial.training.model_dump(mode="json", exclude={"seed", "log_every_tokens", "checkpoint_every_tokens"})
    return json.dumps([group_of(trial), trial.hyperparameters, training], sort_keys=True)


def compared(trials: Iterable[TrialSpec], settings: SchedulerSettings) -> list[TrialSpec]:
    """The trials that have rungs, and another setting in their group; no parent of another trial is among them."""
    trials = list(trials)
    parents = {trial.parent for trial in trials}
    able = [trial for trial in trials if trial.name not in parents and rungs(trial, settings)]
    different: dict[str, set[str]] = {}
    for trial in able:
        different.setdefault(group_of(trial), set()).add(setting_of(trial))
    return [trial for trial in able if len(different[group_of(trial)]) > 1]


def middle_first(trials: Sequence[TrialSpec]) -> list[TrialSpec]:
    """The trials with the learning rates in the middle of each group first, since the best is likely there.

    What begins later is compared with what is ahead of it; were the rates in the order of a grid, those below the best
    would all run to their end before they meet one that beats them. Of two equally far the higher is first.
    """
    rates: dict[str, list[float]] = {}
    for trial in trials:
        rates.setdefault(group_of(trial), []).append(trial.training.lr)

    def place(trial: TrialSpec) -> tuple[float, float]:
        different = sorted(set(rates[group_of(trial)]))
        from_middle = different.index(trial.training.lr) - (len(different) - 1) / 2
        return abs(from_middle), -from_middle

    return sorted(trials, key=place)


def compared_evaluations(trials: Iterable[TrialSpec], settings: SchedulerSettings) -> dict[str, float]:
    """Trial -> how many whole evaluations its comparisons take, were it trained to its end."""
    return {trial.name: HELDOUT_SHARE * len(rungs(trial, settings)) for trial in compared(trials, settings)}


def check_scheduler(trials: Sequence[TrialSpec], settings: SchedulerSettings) -> None:
    """Refuses a scheduler that could stop nothing, or that would compare too early.

    Raises:
        UserError: so it is.
    """
    if not settings.stop_dominated:
        if settings.grace_tokens is not None:
            raise UserError("scheduler.grace_tokens: nothing reads it without stop_dominated: true")
        return
    if settings.grace_tokens is not None:
        warm = max(_warm(trial.training) for trial in trials)
        if settings.grace_tokens < warm:
            raise UserError(
                f"scheduler.grace_tokens: the sparsity coefficient rises for {warm:,} rows (training.l1_warmup), and "
                f"before that L0 says nothing; give {warm:,} or more"
            )
    if not any(rungs(trial, settings) for trial in trials):
        given, most = settings.grace_tokens, max(trial.training.trained_tokens for trial in trials)
        if given is None:
            raise UserError(
                "scheduler.stop_dominated: there is no metric row between the rise of the sparsity coefficient "
                "(l1_warmup) and the end of a run; give training.log_every_tokens, or leave the scheduler out"
            )
        raise UserError(
            f"scheduler.grace_tokens: after {given:,} rows no run goes on to a further metric row (the longest has "
            f"{most:,}); give fewer, e.g. {max(1, most // 4):,}"
        )
    if not compared(trials, settings):
        raise UserError(
            "scheduler.stop_dominated: no two settings have one site, architecture, width and sparsity; it compares "
            "learning rates and recipes, so give several (e.g. training.lr: [3e-4, 1e-3, 3e-3]), or leave it out"
        )


def _warm(training: TrialTraining) -> int:
    """Rows until the sparsity coefficient has risen."""
    return math.ceil(training.l1_warmup * training.steps) * training.batch_size
