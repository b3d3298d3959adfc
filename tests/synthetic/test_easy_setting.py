"""An architecture that trains finds the true features where that is easy: a test of all of it, from rows to metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic_sweeps import sweep

from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.saes import to_bytes
from gsae_ray.training.trainer import Trainer

EASY = {"d_in": 32, "features": 40, "active": 3, "zipf": 0, "hierarchy": None}
ENTRIES: dict[str, dict[str, Any]] = {
    "gated": {"l1_coefficient": 3},
    "standard": {"l1_coefficient": 1},
    "jumprelu": {"l0_coefficient": 0.01},
    "p_anneal": {"l1_coefficient": 2},
}


@pytest.mark.parametrize("architecture", ENTRIES)
def test_an_sae_finds_the_true_features_in_the_easy_setting(architecture: str) -> None:
    given = sweep(
        model=EASY,
        saes=[{"architecture": architecture, "widths": [40], **ENTRIES[architecture]}],
        training={"tokens": 300_000, "batch_size": 256, "lr": 1e-2},
        evaluation={"tokens": 10_000},
    )
    plan = prepare(given, Path("unused"))
    (trial,) = plan.trials
    producer = Producer(producer_spec(plan))
    trainer = Trainer(trial, RowStream(LocalBlockReader(producer, trial.site), plan.layout, trial.site))
    while not trainer.done:
        trainer.train_interval()
    metrics = producer.run(Evaluate(trial.site, *to_bytes(trainer.finished_sae({})))).metrics
    assert metrics["mcc"] >= 0.95
    assert metrics["feature_recall"] >= 0.85 and metrics["fvu"] < 0.15
    assert metrics["splitting"] < 1.1 and "absorption" not in metrics
