"""Whether a trial's directory has tables of the features of the SAE that is in it."""

from __future__ import annotations

from gsae_ray.feature_tables import are_of
from gsae_ray.storage.trial_directory import TrialDirectory


def has_features(directory: TrialDirectory, fingerprint: str) -> bool:
    """Whether it has tables of its finished SAE, of this version, on the held-out text of that fingerprint."""
    evaluation = directory.evaluation(fingerprint)
    return evaluation is not None and are_of(directory.features, evaluation["sae"], fingerprint)
