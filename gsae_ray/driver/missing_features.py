"""Of which finished SAEs tables of features are asked for, and which of those are missing. No Ray here."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from gsae_ray.config.features import FeatureSettings
from gsae_ray.config.sections import ModelSettings
from gsae_ray.evaluation.feature_statistics import FeatureStatistics, Looked, asked
from gsae_ray.feature_tables import are_current
from gsae_ray.files import remove_stale
from gsae_ray.results.curves import pareto
from gsae_ray.storage.evaluations import EvaluationRecord
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.run_names import kind_of


def missing_features(
    trials: Sequence[Trial], settings: FeatureSettings, fingerprint: str, names: Collection[str] | None = None
) -> tuple[Looked, ...]:
    """The SAEs whose tables are missing, or are not as they are asked for.

    Args:
        trials: of the launch, finished or not.
        settings: what is asked for.
        fingerprint: of the held-out contexts.
        names: of the trials that are meant, in place of what the settings say.
    """
    evaluated = [(t, found) for t in trials if (found := t.directory.evaluation(fingerprint)) is not None]
    if names is not None:
        chosen = [(trial, found) for trial, found in evaluated if trial.name in names]
    else:
        chosen = evaluated if settings.saes == "all" else _frontier(evaluated)
    looked = (_looked(trial, found) for trial, found in chosen)
    return tuple(s for s in looked if not are_current(s.target, s.content, fingerprint, asked(settings)))


def feature_task(
    saes: tuple[Looked, ...], settings: FeatureSettings, model: ModelSettings, fingerprint: str
) -> FeatureStatistics:
    """The task that makes them; what a process that died has left of some is removed first."""
    for looked in saes:
        remove_stale(looked.target.parent, f".{looked.target.name}-")
    return FeatureStatistics(saes, settings, model, fingerprint)


def _looked(trial: Trial, evaluation: EvaluationRecord) -> Looked:
    folder = trial.directory.path
    label = f"{kind_of(trial.spec)}, L0 {evaluation['metrics']['eval/l0']:.3g}"
    spec = trial.spec
    coordinates = spec.d_in + (spec.d_out or spec.d_in)
    where = folder / "sae", trial.directory.features, evaluation["sae"]
    return Looked(spec.site, *where, label, spec.d_sae, coordinates)


def _frontier(evaluated: Sequence[tuple[Trial, EvaluationRecord]]) -> list[tuple[Trial, EvaluationRecord]]:
    """Those on the frontier of their site and number of tokens, as `results.frontier` has it."""
    groups: dict[tuple[str, int], list[tuple[Trial, EvaluationRecord]]] = {}
    for trial, found in evaluated:
        l0, recovered = _point(found)
        if l0 > 0 and math.isfinite(l0) and math.isfinite(recovered):
            groups.setdefault((trial.spec.site, trial.spec.training.tokens), []).append((trial, found))
    chosen = []
    for group in groups.values():
        l0s, qualities = np.array([_point(found) for _, found in group]).T
        chosen += [one for one, best in zip(group, pareto(l0s, qualities), strict=True) if best]
    return chosen


def _point(evaluation: EvaluationRecord) -> tuple[float, float]:
    metrics = evaluation["metrics"]
    return metrics["eval/l0"], metrics.get("eval/loss_recovered", math.nan)
