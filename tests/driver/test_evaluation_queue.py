"""Finished SAEs are evaluated while others train; what goes wrong with one is told, and is not the others' trouble."""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from faults import wait_until
from trials import FINGERPRINT, REQUEST, begin, evaluation, expand, logged, random_sae

from gsae_ray.driver import evaluation_queue as queue
from gsae_ray.driver.evaluation_queue import EvaluationQueue
from gsae_ray.errors import ProductionError, not_finite
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.saes import to_bytes
from gsae_ray.storage.evaluations import EvaluationRequest, Snapshot
from gsae_ray.storage.progress import ProgressReader
from gsae_ray.storage.trial_directory import Trial, TrialDirectory


class Evaluator:
    """Answers at once: L0 is 20, or what pursuit is asked for. Remembers the requests."""

    def __init__(self) -> None:
        self.asked: list[int | None] = []

    def __call__(self, task: Evaluate) -> Future[Evaluation]:
        self.asked.append(task.pursuit_l0)
        future: Future[Evaluation] = Future()
        future.set_result(evaluation(l0=20 if task.pursuit_l0 is None else task.pursuit_l0))
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

    def evaluate(_task: Evaluate) -> Future[Evaluation]:
        future: Future[Evaluation] = Future()
        answer = next(answers)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
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


def test_only_a_few_saes_are_in_memory_at_a_time(tmp_path: Path) -> None:
    trials = [Trial(trial, begin(tmp_path, trial)) for trial in expand(widths=[16, 24, 32, 40, 48])]
    for trial, directory in trials:
        directory.finish(random_sae(trial))
    open_requests: list[Future[Evaluation]] = []
    most = 0

    def evaluate(_task: Evaluate) -> Future[Evaluation]:
        nonlocal most
        future: Future[Evaluation] = Future()
        open_requests.append(future)
        most = max(most, len(open_requests))
        if len(open_requests) == 4:  # of two SAEs, as many as may be: the oldest gets its answers
            for _ in range(2):
                open_requests.pop(0).set_result(evaluation())
        return future

    both = EvaluationRequest(FINGERPRINT, (None, 4))
    queue = EvaluationQueue(trials, both, evaluate, at_a_time=2, interval_s=0.01)
    queue.start()
    while any(directory.status(both).missing for _, directory in trials[:-1]):
        assert queue.is_alive()
    for request in open_requests:
        request.set_result(evaluation())
    queue.finish()
    assert most == 4
    assert all(not directory.status(both).missing for _, directory in trials)


def test_snapshots_are_evaluated_after_their_trial_few_saes_at_a_time(tmp_path: Path) -> None:
    """Of each SAE the weights are in memory while it is evaluated."""
    (trial,) = expand(snapshots_at=[128, 256, 512])
    directory = begin(tmp_path, trial)
    saes = {tokens: random_sae(trial, tokens) for tokens in (128, 256, 512)}
    for tokens in (128, 256):  # of an earlier launch, which asked for two
        directory.keep_snapshot(tokens, functools.partial(saes.__getitem__, tokens))
    asked: list[tuple[bytes, Future[Evaluation]]] = []

    def submit(task: Evaluate) -> Future[Evaluation]:
        asked.append((task.weights, Future()))
        return asked[-1][1]

    request = EvaluationRequest(FINGERPRINT, (None, 4), (128, 256, 512))
    queue = EvaluationQueue([Trial(trial, directory)], request, submit, at_a_time=2, interval_s=0.01)
    queue.start()
    time.sleep(0.05)
    assert not asked, "the trial is not done"
    directory.finish(random_sae(trial))
    wait_until(lambda: len(asked) == 3)
    time.sleep(0.05)
    assert len(asked) == 3, "the finished SAE, twice, and one snapshot"
    for number in range(4):
        wait_until(lambda: len(asked) > number)  # noqa: B023
        asked[number][1].set_result(evaluation(l0=10 + number))
    queue.finish()
    own = to_bytes(random_sae(trial))[1]
    assert [weights for weights, _ in asked] == [own, own, *(to_bytes(saes[t])[1] for t in (128, 256))]
    found = {subject: record["metrics"] for subject, record in directory.evaluations(request).items()}
    assert found == {
        None: logged(evaluation(l0=10)),
        4: logged(evaluation(l0=11), "pursuit"),
        Snapshot(128): logged(evaluation(l0=12), "snapshot"),
        Snapshot(256): logged(evaluation(l0=13), "snapshot"),
    }
    assert [trial.state for trial in ProgressReader([Trial(trial, directory)], request).update()] == ["done"]
