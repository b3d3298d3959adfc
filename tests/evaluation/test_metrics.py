"""The metrics of an evaluation: all of them in one place, and one more is one entry."""

from __future__ import annotations

import numpy as np
import pytest
from added_metric import added_metric

from gsae_ray.errors import UserError
from gsae_ray.evaluation import metrics
from gsae_ray.evaluation.metrics import METRICS, SUMS, Evaluation, Sums, columns, resampled, schema_version
from gsae_ray.results.intervals import interval, of

SEQUENCES = {name: [2.0 + i, 3.0 + i, 5.0] for i, name in enumerate(SUMS)}


def test_an_evaluation_has_every_metric_and_each_is_a_ratio_of_sums() -> None:
    found = Evaluation.of(SEQUENCES, alive_fraction=0.25, dense_heldout=0.125)
    elsewhere = ("features", "training", "probes", "ratings")
    assert found.metrics.keys() == {name for name, metric in METRICS.items() if metric.takes not in elsewhere}
    assert found.metrics["l0"] == sum(SEQUENCES["active"]) / sum(SEQUENCES["rows"])
    assert found.metrics["rows"] == sum(SEQUENCES["rows"])
    assert found.metrics["alive_fraction"] == 0.25 and found.metrics["dead_heldout"] == 0.75
    assert found.metrics["dense_heldout"] == 0.125
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


def test_a_metric_is_left_out_only_where_a_sum_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A formula with an error in it is none without sums: it is not left out without a word."""
    rows_alone = {name: values for name, values in SEQUENCES.items() if not name.startswith(("nll", "kl", "positions"))}
    found = Evaluation.of(rows_alone, 0.25)
    assert set(found.metrics) == {"l0", "gamma", "fvu", "alive_fraction", "dead_heldout", "rows"}
    monkeypatch.setattr(metrics, "METRICS", dict(METRICS))

    @metrics.metric("misspelt", since=1)
    def misspelt(s: Sums) -> metrics.Array:
        return np.asarray(s["x_hat_sqq"])

    with pytest.raises(KeyError, match="x_hat_sqq"):
        Evaluation.of(SEQUENCES, 0.25)


def test_an_evaluation_says_by_which_schema_it_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Evaluation.of(SEQUENCES, 0.5)
    added_metric(monkeypatch)
    assert Evaluation.of(SEQUENCES, 0.5).schema == before.schema + 1 == schema_version()


def test_intervals_of_rows_alone_are_of_what_needs_no_language_model() -> None:
    rows_alone = {name: values for name, values in SEQUENCES.items() if not name.startswith(("nll", "kl", "positions"))}
    assert interval(of("fvu"), [[rows_alone, rows_alone]]).value == Evaluation.of(SEQUENCES, 0.5).metrics["fvu"]
    other = {**rows_alone, "x_sq": [7.0, 7.0, 7.0]}
    for saes in ([rows_alone, other], [rows_alone, SEQUENCES]):
        with pytest.raises(UserError, match="different contexts"):
            interval(of("fvu"), [saes])
    with pytest.raises(UserError, match="^nll_spliced: this evaluation has no such sum"):
        interval(of("loss_recovered"), [[rows_alone]])
