"""Finished SAEs are evaluated while others train; what goes wrong with one is told, and is not the others' trouble."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from trials import FINGERPRINT, REQUEST, begin, evaluation, expand, logged, random_sae

from gsae_ray.driver import evaluation_queue as queue
from gsae_ray.driver.evaluation_queue import EvaluationQueue
from gsae_ray.errors import ProductionError, not_finite
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.task import EvaluateTogether
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.storage.progress import ProgressReader
from gsae_ray.storage.trial_directory import Trial, TrialDirectory


class Evaluator:
    """Answers at once: L0 is 20, or what pursuit is asked for. Remembers the requests."""

    def __init__(self) -> None:
        self.asked: list[int | None] = []

    def __call__(self, together: EvaluateTogether) -> Future[list[Evaluation]]:
        self.asked += [task.pursuit_l0 for task in together.tasks]
        future: Future[list[Evaluation]] = Future()
        future.set_result([evaluation(l0=20 if l0 is None else l0) for l0 in self.asked[-len(together.tasks) :]])
        return future


def test_an_sae_that_cannot_be_read_is_told_and_the_others_are_evaluated(tmp_path: Path) -> None:
    trials = [Trial(trial, begin(tmp_path, trial)) for trial in expand(widths=[16, 32])]
    for trial, directory in trials:
        directory.finish(random_sae(trial))
    (trials[0][1].path / "sae/cfg.json").unlink()
    queue = EvaluationQueue(trials, REQUEST, Evaluator(), interval_s=0.01)
    queue.start()
    with pytest.raises(ProductionError, match="cfg.json"):
        queue.finish()
    assert trials[0][1].evaluation(FINGERPRINT) is None
    found = trials[1][1].evaluation(FINGERPRINT)
    assert found is not None and found["metrics"] == logged(evaluation(l0=20))


def test_an_sae_that_cannot_be_measured_has_failed_for_good_and_the_others_are_evaluated(tmp_path: Path) -> None:
    trials = [Trial(trial, begin(tmp_path, trial)) for trial in expand(widths=[16, 32])]
    for trial, directory in trials:
        directory.finish(random_sae(trial))
    why = not_finite("activations at here", "the held-out text", "float16")
    answers: Iterator[Evaluation | Exception] = iter((why, evaluation()))

    def evaluate(_together: EvaluateTogether) -> Future[list[Evaluation]]:
        future: Future[list[Evaluation]] = Future()
        answer = next(answers)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result([answer])
        return future

    queue = EvaluationQueue(trials, REQUEST, evaluate, interval_s=0.01)
    queue.start()
    queue.finish()
    (failed, done) = (directory for _, directory in trials)
    assert failed.failure == str(why) and failed.evaluation(FINGERPRINT) is None
    assert done.failure is None and done.evaluation(FINGERPRINT) is not None
    assert [trial.state for trial in ProgressReader(trials, REQUEST).update()] == ["failed", "done"]
    failed.save_evaluation(FINGERPRINT, 1, evaluation())  # on other text it can be
    assert [trial.state for trial in ProgressReader(trials, REQUEST).update()] == ["done", "done"]


@pytest.mark.parametrize("patience_s", [120.0, 0.05])
def test_storage_may_hiccup_but_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    monkeypatch.setattr(queue, "STORAGE_TIMEOUT_S", patience_s)
    (trial,) = expand()
    directory = begin(tmp_path, trial)
    directory.finish(random_sae(trial))
    back_at = time.monotonic() + 0.3

    class Away(TrialDirectory):
        @property
        def done(self) -> bool:
            if time.monotonic() < back_at:
                raise OSError(errno.ESTALE, "Stale file handle")
            return super().done

    evaluations = EvaluationQueue([Trial(trial, Away(directory.path))], REQUEST, Evaluator(), interval_s=0.01)
    evaluations.start()
    if patience_s > 1:
        evaluations.finish()
        assert directory.evaluation(FINGERPRINT) is not None
    else:
        with pytest.raises(ProductionError, match="Stale file handle"):
            evaluations.finish()


def test_only_the_evaluations_that_are_missing_are_made(tmp_path: Path) -> None:
    (trial,) = expand()
    directory = begin(tmp_path, trial)
    directory.finish(random_sae(trial))
    for encoders, new in [((None, 4), [None, 4]), ((None, 4, 8), [8]), ((None, 8), [])]:
        evaluator = Evaluator()
        request = EvaluationRequest(FINGERPRINT, encoders)
        queue = EvaluationQueue([Trial(trial, directory)], request, evaluator, interval_s=0.01)
        queue.start()
        queue.finish()
        assert evaluator.asked == new
    own, pursuit = directory.evaluation(FINGERPRINT), directory.evaluation(FINGERPRINT, 8)
    assert own is not None and own["metrics"]["eval/l0"] == 20
    assert pursuit is not None and pursuit["metrics"]["pursuit/l0"] == 8


class Producers:
    """Remembers tasks, and answers when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[EvaluateTogether, Future[list[Evaluation]]]] = []
        self.saes: list[int] = []
        """How many each task had."""

    def __call__(self, together: EvaluateTogether) -> Future[list[Evaluation]]:
        assert len({task.site for task in together.tasks}) == 1
        future: Future[list[Evaluation]] = Future()
        self.saes.append(len({task.weights for task in together.tasks}))
        self.waiting.append((together, future))
        return future

    def answer(self) -> None:
        """Answers the oldest task: each L0 is the width of the SAE."""
        together, future = self.waiting.pop(0)
        future.set_result([evaluation(l0=json.loads(task.cfg)["d_sae"]) for task in together.tasks])


def finished(tmp_path: Path, **grid: Any) -> list[Trial]:
    trials = [Trial(trial, begin(tmp_path, trial)) for trial in expand(**grid)]
    for trial, directory in trials:
        directory.finish(random_sae(trial))
    return trials


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_saes_are_evaluated_together_where_producers_are_busy(tmp_path: Path) -> None:
    widths = [16 + 8 * i for i in range(11)]
    trials = finished(tmp_path, widths=widths)
    producers, both = Producers(), EvaluationRequest(FINGERPRINT, (None, 4))
    queue = EvaluationQueue(trials, both, producers, at_a_time=2, interval_s=0.01)
    queue.start()
    for saved in (0, 4, 8):
        until(lambda saved=saved: sum(not t.directory.status(both).missing for t in trials) == saved)  # type: ignore[misc]
        until(lambda: len(producers.waiting) > 0)
        assert len(producers.waiting) <= 2
        producers.answer()
    queue.finish()
    assert producers.saes == [4, 4, 3]
    for width, (_, directory) in zip(widths, trials, strict=True):
        own, pursuit = directory.evaluation(FINGERPRINT), directory.evaluation(FINGERPRINT, 4)
        assert own is not None and own["metrics"] == logged(evaluation(l0=width))
        assert pursuit is not None and pursuit["metrics"] == logged(evaluation(l0=width), "pursuit")


def test_one_sae_for_each_producer_that_is_free(tmp_path: Path) -> None:
    producers = Producers()
    queue = EvaluationQueue(finished(tmp_path, widths=[16, 24, 32]), REQUEST, producers, at_a_time=3, interval_s=0.01)
    queue.start()
    until(lambda: len(producers.waiting) == 3)
    while producers.waiting:
        producers.answer()
    queue.finish()
    assert producers.saes == [1, 1, 1]


def test_large_saes_are_evaluated_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "TOGETHER_BYTES", 1000)
    trials, producers = finished(tmp_path, widths=[16, 24, 32, 40]), Producers()
    evaluations = EvaluationQueue(trials, REQUEST, producers, at_a_time=1, interval_s=0.01)
    evaluations.start()
    for _ in trials:
        until(lambda: len(producers.waiting) == 1)
        producers.answer()
    evaluations.finish()
    assert producers.saes == [1, 1, 1, 1]


def test_saes_of_two_sites_are_not_evaluated_together(tmp_path: Path) -> None:
    trials, producers = finished(tmp_path, layers=[1, 2], widths=[16, 24]), Producers()
    queue = EvaluationQueue(trials, REQUEST, producers, at_a_time=1, interval_s=0.01)
    queue.start()
    for _ in range(2):
        until(lambda: len(producers.waiting) == 1)
        producers.answer()
    queue.finish()
    assert producers.saes == [2, 2]
    assert all(directory.evaluation(FINGERPRINT) is not None for _, directory in trials)


def test_what_makes_one_fail_makes_all_of_a_task_fail(tmp_path: Path) -> None:
    """It is the language model at their site whose numbers are not finite."""
    trials, producers = finished(tmp_path, widths=[16, 24]), Producers()
    queue = EvaluationQueue(trials, REQUEST, producers, at_a_time=1, interval_s=0.01)
    queue.start()
    until(lambda: len(producers.waiting) == 1)
    why = not_finite("activations at here", "the held-out text", "float16")
    producers.waiting.pop()[1].set_exception(why)
    queue.finish()
    assert producers.saes == [2] and [directory.failure for _, directory in trials] == [str(why)] * 2
