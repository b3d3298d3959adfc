"""Small trials, and directories as trials leave them, for tests that start where training has ended."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.evaluation.bootstrap import intervals_of
from gsae_ray.evaluation.metrics import Evaluation, schema_version
from gsae_ray.saes import SAE, SAEConfig, build
from gsae_ray.storage.evaluations import EvaluationRequest, Snapshot
from gsae_ray.storage.trial_directory import TrialDirectory

FINGERPRINT = "f" * 64
REQUEST = EvaluationRequest(FINGERPRINT, (None,))
"""One evaluation, with the SAE's own encoder."""
SITE_1, SITE_2 = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
D_IN = 8
DENSITY = {"dead_heldout": 0.5, "dense_heldout": 0.25}
L1: dict[str, Any] = {"l1_coefficient": 1.0}
SPARSITY: dict[str, dict[str, Any]] = {"topk": {"k": 4}, "batchtopk": {"k": 4}, "jumprelu": {"l0_coefficient": 0.01}}
"""Architecture -> what sets its sparsity, where that is no L1 penalty."""


def expand(
    architecture: str = "gated", layers: tuple[int, ...] = (1,), tokens: int = 1024, gpus: float = 0, **entry: Any
) -> list[TrialSpec]:
    """The trials of a sweep with one entry of `saes`."""
    sweep = Sweep.model_validate(
        {
            "name": "small",
            "model": {"name": "builtin"},
            "dataset": {"name": "builtin"},
            "sites": {"layers": list(layers), "points": ["resid_post"]},
            "saes": [{"architecture": architecture, "widths": [16], **SPARSITY.get(architecture, L1), **entry}],
            "training": {"tokens": tokens, "batch_size": 64, "lr": 1e-3},
            "trials": {"gpus": gpus},
        }
    )
    return sweep.expand({Site(site): D_IN for site in (SITE_1, SITE_2)}, {"model": "m", "tokens": "t"})


def random_sae(trial: TrialSpec, seed: int = 0) -> SAE:
    fields = ("architecture", "d_in", "d_sae", "hyperparameters", "site")
    sae = build(SAEConfig(**{name: getattr(trial, name) for name in fields}))
    generator = torch.Generator().manual_seed(seed)
    sae.initialise(generator, torch.randn(trial.d_in, generator=generator))
    return sae


def row_metrics(tokens: int) -> dict[str, float]:
    """What a trial logs at a step."""
    return {"train/loss": 1 / tokens, "train/l0": float(tokens)}


def begin(root: Path, trial: TrialSpec, steps: int = 0) -> TrialDirectory:
    """A trial that has logged `steps` rows, one every 64 tokens."""
    directory = TrialDirectory(root / trial.directory_name)
    directory.begin_attempt(trial)
    for step in range(1, steps + 1):
        directory.append(64 * step, row_metrics(64 * step))
    return directory


def evaluation(l0: float = 20.0, loss_recovered: float = 0.9, **metrics: float) -> Evaluation:
    values = {"l0": l0, "loss_recovered": loss_recovered, "gamma": 1.0, "fvu": 0.1, "kl": 0.2}
    values |= {"ce_clean": 3.0, "ce_spliced": 3.4, "ce_zero": 7.0, "alive_fraction": 0.5} | DENSITY | metrics
    return Evaluation(values, {"rows": [7.0, 6.0], "active": [7 * l0, 6 * l0]}, schema_version())


def logged(evaluation: Evaluation, kind: str = "eval") -> dict[str, float]:
    """Its metrics with the ends of their intervals, as storage and MLflow name them."""
    measured = {**evaluation.metrics, **intervals_of(evaluation.sequences)}
    return {f"{kind}/{name}": value for name, value in measured.items()}


def finish(
    directory: TrialDirectory,
    trial: TrialSpec,
    fingerprint: str = FINGERPRINT,
    pursuit: Mapping[int, Evaluation] | None = None,
    **metrics: float,
) -> None:
    """Training and evaluation end; `pursuit`: by target L0."""
    directory.finish(random_sae(trial))
    directory.save_evaluation(fingerprint, trial.training.tokens, evaluation(**metrics))
    for l0, found in (pursuit or {}).items():
        directory.save_evaluation(fingerprint, trial.training.tokens, found, l0)


def finish_with_snapshots(
    directory: TrialDirectory, trial: TrialSpec, snapshots: Mapping[int, Evaluation], **metrics: float
) -> None:
    """As `finish`, after snapshots were kept: by tokens, which are the seeds of the SAEs, too."""
    for tokens in snapshots:
        directory.keep_snapshot(tokens, functools.partial(random_sae, trial, tokens))
    finish(directory, trial, **metrics)  # type: ignore[arg-type]
    for tokens, found in snapshots.items():
        directory.save_evaluation(FINGERPRINT, trial.training.tokens, found, Snapshot(tokens))
