"""The metrics of an evaluation: all of them in one place, and one more is one entry."""

from __future__ import annotations

import numpy as np
import pytest
from added_metric import added_metric

from gsae_ray.evaluation import metrics
from gsae_ray.evaluation.metrics import METRICS, SUMS, Evaluation, Sums, columns, resampled, schema_version
from gsae_ray.results.intervals import interval, of

SEQUENCES = {name: [2.0 + i, 3.0 + i, 5.0] for i, name in enumerate(SUMS)}


def test_an_evaluation_has_every_metric_and_each_is_a_ratio_of_sums() -> None:
    found = Evaluation.of(SEQUENCES, alive_fraction=0.25)
    assert found.metrics.keys() == METRICS.keys()
    assert found.metrics["l0"] == sum(SEQUENCES["active"]) / sum(SEQUENCES["rows"])
    assert found.metrics["rows"] == sum(SEQUENCES["rows"])
    assert found.metrics["alive_fraction"] == 0.25
    totals = {name: np.sum(values) for name, values in SEQUENCES.items()}
    for name, formula in resampled().items():
        assert found.metrics[name] == float(formula(totals))


def test_a_ratio_whose_denominator_is_zero_is_nan() -> None:
    nothing = Evaluation.of({name: [0.0, 0.0] for name in SUMS}, alive_fraction=0.0)
    assert np.isnan(nothing.metrics["gamma"]) and np.isnan(nothing.metrics["loss_recovered"])


def test_a_metric_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations carry it, the frontier has a column for it, intervals draw it, and the schema version is raised."""
    before = schema_version()
    added_metric(monkeypatch)
    assert schema_version() == before + 1
    assert columns()[-1] == "norm_ratio"
    assert Evaluation.of(SEQUENCES, 0.5).metrics["norm_ratio"] == sum(SEQUENCES["x_hat_sq"]) / sum(SEQUENCES["x_sq"])
    assert interval(of("norm_ratio"), [[SEQUENCES]]).value == pytest.approx(
        sum(SEQUENCES["x_hat_sq"]) / sum(SEQUENCES["x_sq"])
    )


def test_a_metric_that_takes_more_than_sums_is_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRICS", dict(METRICS))

    @metrics.metric("share of features that never were active", since=1, resampled=False)
    def dead_fraction(s: Sums) -> metrics.Array:
        return 1 - np.asarray(s["alive_fraction"])

    assert Evaluation.of(SEQUENCES, 0.25).metrics["dead_fraction"] == 0.75
    assert "dead_fraction" not in resampled()
