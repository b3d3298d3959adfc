"""Finished SAEs are evaluated while others train; what goes wrong with one is told, and is not the others' trouble."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from trials import begin, expand, random_sae

from gsae_ray.errors import ProductionError
from gsae_ray.evaluation.queue import EvaluationQueue


def test_an_sae_that_cannot_be_read_is_told_and_the_others_are_evaluated(tmp_path: Path) -> None:
    trials = [(trial, begin(tmp_path, trial)) for trial in expand(widths=[16, 32])]
    for trial, directory in trials:
        directory.finish(random_sae(trial))
    (trials[0][1].path / "sae/cfg.json").unlink()

    def evaluate(site: str, cfg: str, weights: bytes) -> Future[dict[str, float]]:
        future: Future[dict[str, float]] = Future()
        future.set_result({"l0": 3.0})
        return future

    queue = EvaluationQueue(trials, "f" * 64, evaluate, interval_s=0.01)
    queue.start()
    with pytest.raises(ProductionError, match="cfg.json"):
        queue.finish()
    assert trials[0][1].evaluation("f" * 64) is None
    found = trials[1][1].evaluation("f" * 64)
    assert found is not None and found["metrics"] == {"eval/l0": 3.0}
