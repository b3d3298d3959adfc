"""Evaluations carry the version of their metrics: older ones are made again by the next launch, and shown meanwhile."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from added_metric import added_metric
from trials import FINGERPRINT, REQUEST, begin, evaluation, expand, finish

from gsae_ray.driver.evaluation_queue import EvaluationQueue
from gsae_ray.evaluation.metrics import METRICS, Evaluation, schema_version
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.results.frontier import frontier
from gsae_ray.storage.evaluations import EVALUATION, EvaluationRequest, schema_of
from gsae_ray.storage.launch_directory import EVALUATED, LAUNCH
from gsae_ray.storage.trial_directory import Trial, TrialDirectory

TRIALS = expand(l1_coefficient=[1.0, 2.0])


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A launch of two trials that are evaluated."""
    launch = tmp_path / "swept/launches/20260101-000000-abcd"
    launch.mkdir(parents=True)
    LAUNCH.write(launch / "launch.json", {"sweep": {"name": "swept"}, "trials": {t.name: t.identity for t in TRIALS}})
    EVALUATED.write(launch / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    for spec in TRIALS:
        directory = begin(tmp_path / "swept/trials", spec)
        finish(directory, spec, l0=10 * spec.hyperparameters["l1_coefficient"])
    return tmp_path


def trials(storage: Path) -> list[Trial]:
    return [Trial(spec, TrialDirectory(storage / "swept/trials" / spec.directory_name)) for spec in TRIALS]


def evaluate(_task: Evaluate) -> Future[Evaluation]:
    future: Future[Evaluation] = Future()
    future.set_result(evaluation(norm_ratio=0.75))
    return future


def test_an_evaluation_without_a_schema_version_is_of_the_first(storage: Path) -> None:
    (trial, _) = trials(storage)
    assert trial.directory.status(REQUEST).done
    (path,) = (trial.directory.path / "evaluations").iterdir()
    record = EVALUATION.read(path)
    assert record is not None and record.pop("schema") == schema_version() > 1
    EVALUATION.write(path, record)
    assert schema_of(record) == 1 and trial.directory.status(REQUEST).outdated == (None,)


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


def test_an_evaluation_by_a_process_of_an_older_schema_is_outdated(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer may have an older install than the driver, or lack a metric from outside of the package."""
    older = evaluation()
    added_metric(monkeypatch)
    (trial, _) = trials(storage)
    trial.directory.save_evaluation(FINGERPRINT, 1024, older)
    assert trial.directory.status(REQUEST).outdated == (None,)
    trial.directory.save_evaluation(FINGERPRINT, 1024, evaluation(norm_ratio=0.75))
    assert trial.directory.status(REQUEST).done


def test_beside_evaluations_of_an_older_schema_a_failure_on_other_text_is_none(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SAE is shown, and evaluated again; only who asks for no evaluation at all is told."""
    (trial, _) = trials(storage)
    trial.directory.fail_evaluation("no number")
    added_metric(monkeypatch)
    status = trial.directory.status(REQUEST)
    assert (status.evaluated, status.outdated, status.failure) == (True, (None,), None)
    assert len(frontier("swept", storage=storage)) == 2
    assert trial.directory.status(EvaluationRequest("", ())).failure == "no number"


def test_metrics_that_are_no_columns_are_named_too(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added_metric(monkeypatch)
    monkeypatch.setitem(METRICS, "norm_ratio", dataclasses.replace(METRICS["norm_ratio"], column=False))
    (note,) = frontier("swept", storage=storage).attrs["notes"]
    assert "without norm_ratio;" in note


def test_a_metric_that_is_not_finite_is_noted_and_its_sae_stays(storage: Path) -> None:
    (first, second) = trials(storage)
    first.directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=10.0, gamma=math.nan, kl=math.inf))
    second.directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=20.0, loss_recovered=math.nan))
    rows = frontier("swept", storage=storage)
    assert rows["l0"].tolist() == [10.0] and rows["on_frontier"].all()
    assert rows.attrs["notes"] == [
        f"{second.name} is left out: L0 = 20, loss recovered nan",
        f"{first.name} has no finite gamma, kl",
    ]


def test_saes_that_were_evaluated_without_a_language_model_are_left_out_in_words(storage: Path) -> None:
    (first, _) = trials(storage)
    whole = evaluation(l0=10.0)
    alone = {name: value for name, value in whole.metrics.items() if name in ("l0", "gamma", "fvu", "alive_fraction")}
    first.directory.save_evaluation(FINGERPRINT, 1024, whole._replace(metrics=alone))
    rows = frontier("swept", storage=storage)
    assert rows["l0"].tolist() == [20.0]
    (note,) = rows.attrs["notes"]
    assert note == (
        "without a language model there is no loss recovered, so evaluations on rows alone are left out: 1 of 2"
    )


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
