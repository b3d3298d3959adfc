"""Names of trials' runs in MLflow, whose tables cut them off: what trials differ in comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from gsae_ray.config.site import Site
from gsae_ray.config.trial import TrialSpec


def run_names(trials: Sequence[TrialSpec]) -> dict[str, str]:
    """Trial -> the name of its run: `gated w512 λ4 · L2 resid_post · s0`.

    Recipe, learning rate and tokens are in it where they differ within the sweep. Trials that then still have the same
    name, as those of two tied grids may, keep their own.
    """
    more: tuple[Callable[[TrialSpec], str], ...] = (
        lambda trial: trial.recipe,
        lambda trial: f"lr {trial.training.lr:g}",
        lambda trial: f"{trial.training.tokens:,} tokens",
    )
    varying = [word for word in more if len({word(trial) for trial in trials}) > 1]
    names = {trial.name: " · ".join(_words(trial, [word(trial) for word in varying])) for trial in trials}
    counts = Counter(names.values())
    return {trial: name if counts[name] == 1 else trial for trial, name in names.items()}


def _words(trial: TrialSpec, others: Sequence[str]) -> list[str]:
    return [kind_of(trial), _place(Site(trial.site)), *others, f"s{trial.training.seed}"]


def kind_of(trial: TrialSpec) -> str:
    """What tells a trial's SAE from others of its site: `gated w512 λ4`."""
    return " ".join(filter(None, (trial.architecture, trial.variant, f"w{trial.d_sae}", _sparsity(trial))))


def _sparsity(trial: TrialSpec) -> str:
    from gsae_ray.saes import REGISTRY  # here: it imports torch

    if trial.sparsity is None:
        return ""
    key = REGISTRY[trial.architecture].sparsity_key(trial.hyperparameters) or ""
    sign = "k" if key == "k" else "λ" if key.endswith("_coefficient") else "L0 "
    return f"{sign}{trial.sparsity:g}"


def _place(site: Site) -> str:
    if site.layer is None:
        return site.name
    return f"L{site.layer} {site.point.replace(':', ' → ')}"
