"""A sparse probe: a logistic regression on a few columns, and how well it tells labels in other documents. No torch.

The k columns are those whose means over the two classes differ most (Gurnee et al. 2023, "Finding neurons in a
haystack", section 3; SAEBench's sparse probing): chosen, scaled to variance 1 and fitted on one half of the documents,
scored on the other half. AUC is the probability that a row of class 1 is scored above one of class 0, a tie counting
half. F1 is at the threshold that is best on the fitted half. Both are made of sums over pairs of documents, and over
documents, so that those of documents drawn with replacement are exact; pairs are summed as they come, and memory grows
with the number of documents, not with its square.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from gsae_ray.evaluation.metrics import Array

Rows = NDArray[np.int8]
Documents = NDArray[np.int64]
MOST_STEPS = 200
"""Of the solver: one of few columns stops long before; one of all coordinates changes little after it."""


PAIRED = 256
"""Documents whose pairs with all others are in memory at a time."""


class Scored(NamedTuple):
    """How well a probe tells documents that it was not fitted on, of each draw of them; NaN where a class is absent."""

    auc_N: Array
    f1_N: Array
    """NaN, too, where nothing is, or is found, of class 1."""


def strongest(difference_F: Array, k: int) -> NDArray[np.int64]:
    """The k columns of the largest |difference of means|, of equal ones the first."""
    return np.argsort(-np.abs(difference_F), kind="stable")[:k]


def fit_and_score(
    x_RK: Array, labels_R: Rows, fitted_R: NDArray[np.bool_], document_R: Documents, counts_NM: Array
) -> Scored:
    """Fits a probe on one half of rows, and scores it on the other.

    Args:
        x_RK: the columns, float64.
        labels_R: 0 or 1.
        fitted_R: which rows are fitted.
        document_R: of each row.
        counts_NM: of each draw, how often each document is taken.

    Returns:
        AUC and F1 of each draw. Where one of the halves lacks a class there is no probe, and all is NaN.
    """
    if len(np.unique(labels_R[fitted_R])) < 2:
        nothing = np.full(len(counts_NM), np.nan)
        return Scored(nothing, nothing)
    mean_K, std_K = x_RK[fitted_R].mean(0), x_RK[fitted_R].std(0)
    x_RK = x_RK - mean_K
    x_RK /= np.where(std_K > 0, std_K, 1)
    with threadpool_limits(1), warnings.catch_warnings():  # the last bits do not depend on the machine's cores
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(max_iter=MOST_STEPS).fit(x_RK[fitted_R], labels_R[fitted_R])
        score_R = probe.decision_function(x_RK)
    found_R = score_R >= _best_threshold(score_R[fitted_R], labels_R[fitted_R])
    documents, scored_R = np.unique(document_R[~fitted_R], return_inverse=True)
    return _of_draws(
        score_R[~fitted_R], labels_R[~fitted_R] == 1, found_R[~fitted_R], scored_R, counts_NM[:, documents]
    )


def _of_draws(
    score_R: Array, positive_R: NDArray[np.bool_], found_R: NDArray[np.bool_], document_R: Documents, counts_NM: Array
) -> Scored:
    """AUC and F1 of each draw, from the scores of rows."""
    documents = counts_NM.shape[1]

    def drawn(which_R: NDArray[np.bool_]) -> Array:
        """How many of some rows each draw has."""
        return np.asarray(counts_NM @ np.bincount(document_R[which_R], minlength=documents).astype(np.float64))

    with threadpool_limits(1):
        positives, negatives = drawn(positive_R), drawn(~positive_R)
        hits, found = drawn(positive_R & found_R), drawn(found_R)
        above = np.zeros(len(counts_NM))
        for first in range(0, documents, PAIRED):
            part = slice(first, first + PAIRED)
            above_MB = _above(score_R, positive_R, document_R, range(documents)[part], documents)
            above += ((counts_NM @ above_MB) * counts_NM[:, part]).sum(1)
    nan = np.full(len(counts_NM), np.nan)
    auc = np.divide(above, positives * negatives, out=nan.copy(), where=positives * negatives > 0)
    f1 = np.divide(2 * hits, positives + found, out=nan, where=positives + found > 0)
    return Scored(auc, f1)


def _above(
    score_R: Array, positive_R: NDArray[np.bool_], document_R: Documents, others: range, documents: int
) -> Array:
    """[M, others]: of the rows of class 1 of a document and those of class 0 of another, how many pairs are in order.

    A tie is a half.
    """
    above_MB = np.zeros((documents, len(others)))
    positive, of_positive = score_R[positive_R], document_R[positive_R]
    for column, document in enumerate(others):
        negative = np.sort(score_R[~positive_R & (document_R == document)])
        if len(negative):
            above = (np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")) / 2
            above_MB[:, column] = np.bincount(of_positive, above, documents)
    return above_MB


def _best_threshold(score_R: Array, labels_R: Rows) -> float:
    """The score from which on rows are found, such that F1 is highest; of equal ones the highest."""
    order = np.argsort(-score_R, kind="stable")
    hits, found = np.cumsum(labels_R[order]), np.arange(1, len(order) + 1)
    last = np.append(score_R[order][1:] != score_R[order][:-1], True)  # of equal scores all are found, or none
    f1 = np.where(last, 2 * hits / (labels_R.sum() + found), -1)
    return float(score_R[order][f1.argmax()])
