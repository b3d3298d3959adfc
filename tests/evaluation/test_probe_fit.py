"""A sparse probe: which columns it takes, AUC and F1 on other documents, and their sums over documents."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from gsae_ray.evaluation import probe_fit
from gsae_ray.evaluation.probe_fit import fit_and_score, strongest

DOCUMENTS, ROWS = 8, 400
DOCUMENT_R = np.arange(ROWS) * DOCUMENTS // ROWS
FITTED_R = DOCUMENT_R % 2 == 0
LABELS_R = (np.random.RandomState(0).rand(ROWS) < 0.3).astype(np.int8)
ONCE = np.ones((1, DOCUMENTS))


def noisy(columns: int) -> np.ndarray:
    """Columns that tell the labels a little, rounded so that there are ties."""
    noise = np.random.RandomState(1).randn(ROWS, columns)
    return np.round(noise + 0.8 * LABELS_R[:, None], 1)


def test_the_columns_whose_means_differ_most_are_taken_of_equal_ones_the_first() -> None:
    assert strongest(np.array([0.1, -3.0, 2.0, 2.0, -2.0]), 3).tolist() == [1, 2, 3]


def test_a_column_that_is_the_label_is_told_without_an_error() -> None:
    scored = fit_and_score(LABELS_R[:, None].astype(float), LABELS_R, FITTED_R, DOCUMENT_R, ONCE)
    assert scored.auc_N == scored.f1_N == 1


def test_a_column_that_is_always_the_same_tells_nothing() -> None:
    scored = fit_and_score(np.zeros((ROWS, 1)), LABELS_R, FITTED_R, DOCUMENT_R, ONCE)
    assert scored.auc_N == 0.5


@pytest.mark.parametrize("columns", [1, 3])
def test_auc_and_f1_of_any_choice_of_documents_are_those_of_its_rows(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As scikit-learn computes them of the rows, with a document's rows as often as it is taken."""
    x_RK = noisy(columns)
    counts = np.array([[1] * 8, [0, 2, 0, 0, 0, 1, 0, 1], [0, 0, 0, 4, 0, 0, 0, 0]], float)
    monkeypatch.setattr(probe_fit, "PAIRED", 3)
    scored = fit_and_score(x_RK, LABELS_R, FITTED_R, DOCUMENT_R, counts)
    scaled = (x_RK - x_RK[FITTED_R].mean(0)) / x_RK[FITTED_R].std(0)
    score_R = LogisticRegression().fit(scaled[FITTED_R], LABELS_R[FITTED_R]).decision_function(scaled)
    f1 = {t: f1_score(LABELS_R[FITTED_R], score_R[FITTED_R] >= t) for t in np.unique(score_R[FITTED_R])}
    threshold = max(f1, key=lambda t: (f1[t], t))
    for count_M, auc, own_f1 in zip(counts, *scored, strict=True):
        weights_R = np.where(FITTED_R, 0, count_M[DOCUMENT_R])
        assert auc == pytest.approx(roc_auc_score(LABELS_R, score_R, sample_weight=weights_R))
        assert own_f1 == pytest.approx(f1_score(LABELS_R, score_R >= threshold, sample_weight=weights_R))


def test_without_both_classes_on_the_fitted_half_there_is_no_number() -> None:
    scored = fit_and_score(noisy(1), np.where(FITTED_R, 0, LABELS_R).astype(np.int8), FITTED_R, DOCUMENT_R, ONCE)
    assert np.isnan(scored.auc_N) and np.isnan(scored.f1_N)


def test_memory_does_not_grow_with_the_square_of_the_number_of_documents() -> None:
    documents = 6000
    document_R = np.repeat(np.arange(documents), 2)
    labels_R = np.tile(np.array([0, 1], np.int8), documents)
    counts = np.ones((2, documents))
    tracemalloc.start()
    scored = fit_and_score(labels_R[:, None].astype(float), labels_R, document_R % 2 == 0, document_R, counts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scored.auc_N.tolist() == [1, 1] and peak < 8 * documents**2 / 8
