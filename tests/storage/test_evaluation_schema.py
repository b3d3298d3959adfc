"""Evaluations carry the version of their metrics: older ones are made again by the next launch, and shown meanwhile."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from added_metric import added_metric
from trials import FINGERPRINT, REQUEST, begin, evaluation, expand, finish

from gsae_ray.driver.evaluation_queue import EvaluationQueue
from gsae_ray.evaluation.metrics import Evaluation, schema_version
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.results.frontier import frontier
from gsae_ray.storage.evaluations import EVALUATION, schema_of
from gsae_ray.storage.launch_directory import EVALUATED, LAUNCH
from gsae_ray.storage.trial_directory import Trial, TrialDirectory

TRIALS = expand(l1_coefficient=[1.0, 2.0])


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A launch of two trials that were evaluated before there were schema versions."""
    launch = tmp_path / "swept/launches/20260101-000000-abcd"
    launch.mkdir(parents=True)
    LAUNCH.write(launch / "launch.json", {"sweep": {"name": "swept"}, "trials": {t.name: t.identity for t in TRIALS}})
    EVALUATED.write(launch / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    for spec in TRIALS:
        directory = begin(tmp_path / "swept/trials", spec)
        finish(directory, spec, l0=10 * spec.hyperparameters["l1_coefficient"])
        (path,) = (directory.path / "evaluations").iterdir()
        record = EVALUATION.read(path)
        assert record is not None and record.pop("schema") == schema_version() == 1
        EVALUATION.write(path, record)
    return tmp_path


def trials(storage: Path) -> list[Trial]:
    return [Trial(spec, TrialDirectory(storage / "swept/trials" / spec.directory_name)) for spec in TRIALS]


def evaluate(_task: Evaluate) -> Future[Evaluation]:
    future: Future[Evaluation] = Future()
    future.set_result(evaluation(norm_ratio=0.75))
    return future


def test_an_evaluation_without_a_schema_version_is_of_the_first(storage: Path) -> None:
    assert all(trial.directory.status(REQUEST).done for trial in trials(storage))


def test_evaluations_of_an_older_schema_are_made_again(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added_metric(monkeypatch)
    for trial in trials(storage):
        status = trial.directory.status(REQUEST)
        assert (status.trained, status.missing, status.outdated) == (True, (None,), (None,))
        assert status.evaluated and not status.done
    queue = EvaluationQueue(trials(storage), REQUEST, evaluate, interval_s=0.001)
    queue.start()
    queue.finish()
    for trial in trials(storage):
        assert trial.directory.status(REQUEST).done
        record = trial.directory.evaluation(FINGERPRINT)
        assert record is not None and schema_of(record) == schema_version()
        assert record["metrics"]["eval/norm_ratio"] == 0.75


def test_the_frontier_shows_evaluations_of_an_older_schema_and_says_so(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = frontier("swept", storage=storage)
    assert len(before) == 2 and before.attrs["notes"] == []
    added_metric(monkeypatch)
    meanwhile = frontier("swept", storage=storage)
    assert meanwhile["l0"].tolist() == before["l0"].tolist() == [10.0, 20.0]
    assert meanwhile["on_frontier"].tolist() == before["on_frontier"].tolist()
    assert np.isnan(meanwhile["norm_ratio"]).all()
    (note,) = meanwhile.attrs["notes"]
    assert "2 evaluations are of an older version, without norm_ratio" in note and "next launch" in note
    queue = EvaluationQueue(trials(storage)[:1], REQUEST, evaluate, interval_s=0.001)
    queue.start()
    queue.finish()
    after = frontier("swept", storage=storage).set_index("trial")
    assert after.loc[TRIALS[0].name, "norm_ratio"] == 0.75
    assert np.isnan(after.loc[TRIALS[1].name, "norm_ratio"])
