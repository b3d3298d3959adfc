"""Finished SAEs are evaluated while others train; what goes wrong with one is told, and is not the others' trouble."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from trials import FINGERPRINT, begin, evaluation, expand, logged, random_sae

from gsae_ray.errors import ProductionError
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.queue import EvaluationQueue


class Evaluator:
    """Answers at once: L0 is 20, or what pursuit is asked for. Remembers the requests."""

    def __init__(self) -> None:
        self.asked: list[int | None] = []

    def __call__(self, site: str, cfg: str, weights: bytes, pursuit_l0: int | None) -> Future[Evaluation]:
        self.asked.append(pursuit_l0)
        future: Future[Evaluation] = Future()
        future.set_result(evaluation(l0=20 if pursuit_l0 is None else pursuit_l0))
        return future


def test_an_sae_that_cannot_be_read_is_told_and_the_others_are_evaluated(tmp_path: Path) -> None:
    trials = [(trial, begin(tmp_path, trial)) for trial in expand(widths=[16, 32])]
    for trial, directory in trials:
        directory.finish(random_sae(trial))
    (trials[0][1].path / "sae/cfg.json").unlink()
    queue = EvaluationQueue(trials, FINGERPRINT, (None,), Evaluator(), interval_s=0.01)
    queue.start()
    with pytest.raises(ProductionError, match="cfg.json"):
        queue.finish()
    assert trials[0][1].evaluation(FINGERPRINT) is None
    found = trials[1][1].evaluation(FINGERPRINT)
    assert found is not None and found["metrics"] == logged(evaluation(l0=20))


def test_only_the_evaluations_that_are_missing_are_made(tmp_path: Path) -> None:
    (trial,) = expand()
    directory = begin(tmp_path, trial)
    directory.finish(random_sae(trial))
    for encoders, new in [((None, 4), [None, 4]), ((None, 4, 8), [8]), ((None, 8), [])]:
        evaluator = Evaluator()
        queue = EvaluationQueue([(trial, directory)], FINGERPRINT, encoders, evaluator, interval_s=0.01)
        queue.start()
        queue.finish()
        assert evaluator.asked == new
    own, pursuit = directory.evaluation(FINGERPRINT), directory.evaluation(FINGERPRINT, 8)
    assert own is not None and own["metrics"]["eval/l0"] == 20
    assert pursuit is not None and pursuit["metrics"]["pursuit/l0"] == 8
