"""A storage with SAEs that nobody trained, and tables of their features, for tests of dashboards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from random_feature_tables import random_tables
from recorder import NEWER
from trials import FINGERPRINT, begin, evaluation, expand, random_sae

from gsae_ray.config.trial import TrialSpec
from gsae_ray.feature_tables import FeatureTables
from gsae_ray.saes.folder import content_hash
from gsae_ray.storage import launch_directory

FEATURES = 300
GATED = expand("gated", layers=(1, 2), widths=[FEATURES], l1_coefficient=[1.0, 2.0])
STANDARD = expand("standard", layers=(1, 2), widths=[FEATURES], l1_coefficient=[0.5])
TRIALS = [*GATED, *STANDARD]
"""Two sites, each with two gated SAEs and a standard one, which is on no frontier."""
POINTS = [(40, 0.96), (20, 0.90), (41, 0.97), (19, 0.91), (42, 0.88), (43, 0.87)]


def made_up(trial: TrialSpec, number: int) -> FeatureTables:
    """Tables of a trial: eight features never fire."""
    label = f"{trial.architecture} w{trial.d_sae} λ{trial.sparsity:g}"
    made = random_tables(trial.d_sae, contexts=6, window=32, seed=number, label=label, dead=8)
    made.about["site"], made.about["heldout"] = trial.site, FINGERPRINT
    return made


def storage_of(
    root: Path,
    experiment: str = "small",
    trials: Sequence[TrialSpec] = TRIALS,
    tables: Callable[[TrialSpec, int], FeatureTables] | None = made_up,
) -> Path:
    """A storage with one launch, whose trials are finished; `tables`: None for SAEs without any."""
    launch = root / experiment / "launches" / NEWER
    launch.mkdir(parents=True)
    identities = {trial.name: trial.identity for trial in trials}
    sweep = {"name": experiment, "experiment": experiment, "model": {"name": "builtin"}}
    launch_directory.LAUNCH.write(launch / "launch.json", {"sweep": sweep, "trials": identities})
    launch_directory.EVALUATED.write(launch / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    for number, (trial, (l0, recovered)) in enumerate(zip(trials, POINTS, strict=False)):
        directory = begin(root / experiment / "trials", trial, 1)
        directory.finish(random_sae(trial, number))
        found = evaluation(l0=float(l0), loss_recovered=recovered)
        directory.save_evaluation(FINGERPRINT, trial.training.tokens, found)
        if tables is not None:
            made = tables(trial, number)
            made.about["sae"] = content_hash(directory.path / "sae")
            made.write(directory.features)
    return root
