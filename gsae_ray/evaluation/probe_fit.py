"""A sparse probe: a logistic regression on a few columns, and how well it tells labels in other documents. No torch.

The k columns are those whose means over the two classes differ most (Gurnee et al. 2023, "Finding neurons in a
haystack", section 3; SAEBench's sparse probing): chosen, scaled to variance 1 and fitted on one half of the documents,
scored on the other half. AUC is the probability that a row of class 1 is scored above one of class 0, a tie counting
half. F1 is at the threshold that is best on the fitted half. Both are kept as sums over pairs of documents, and over
documents, so that those of documents drawn with replacement follow from them exactly.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from gsae_ray.evaluation.metrics import Array

Rows = NDArray[np.int8]
MOST_STEPS = 200
"""Of the solver: one of few columns stops long before; one of all coordinates changes little after it."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """A probe's scores of documents that it was not fitted on, as sums."""

    above_MM: Array
    """Of a document's rows of class 1 and another's of class 0, how many pairs are in that order; a tie is a half."""
    positive_M: Array
    negative_M: Array
    hit_M: Array
    """Rows of class 1 that the probe finds."""
    found_M: Array
    """Rows that it finds."""

    def auc(self, counts: Array) -> Array:
        """Of documents taken so often [draws, M]; NaN where a class is absent."""
        pairs = (counts @ self.positive_M) * (counts @ self.negative_M)
        above = ((counts @ self.above_MM) * counts).sum(1)
        return np.divide(above, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)

    def f1(self, counts: Array) -> Array:
        """The same; NaN where nothing is, or is found, of class 1."""
        total = counts @ (self.positive_M + self.found_M)
        return np.divide(2 * (counts @ self.hit_M), total, out=np.full(len(counts), np.nan), where=total > 0)


def strongest(difference_F: Array, k: int) -> NDArray[np.int64]:
    """The k columns of the largest |difference of means|, of equal ones the first."""
    return np.argsort(-np.abs(difference_F), kind="stable")[:k]


def fit_and_score(
    x_RK: Array, labels_R: Rows, fitted_R: NDArray[np.bool_], document_R: NDArray[np.int64], documents: int
) -> Scored:
    """Fits a probe on one half of rows, and scores it on the other.

    Args:
        x_RK: the columns, float64.
        labels_R: 0 or 1.
        fitted_R: which rows are fitted.
        document_R: of each row.
        documents: how many there are.

    Returns:
        sums over documents; of those that are fitted they are 0. Where one of the halves lacks a class there is no
        probe, and all is 0.
    """
    scored_R = ~fitted_R
    if len(np.unique(labels_R[fitted_R])) < 2:
        nothing = np.zeros(documents)
        return Scored(np.zeros((documents, documents)), nothing, nothing, nothing, nothing)
    mean_K, std_K = x_RK[fitted_R].mean(0), x_RK[fitted_R].std(0)
    x_RK = x_RK - mean_K
    x_RK /= np.where(std_K > 0, std_K, 1)
    with threadpool_limits(1), warnings.catch_warnings():  # the last bits do not depend on the machine's cores
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(max_iter=MOST_STEPS).fit(x_RK[fitted_R], labels_R[fitted_R])
        score_R = probe.decision_function(x_RK)
    threshold = _best_threshold(score_R[fitted_R], labels_R[fitted_R])
    is_positive, is_found = scored_R & (labels_R == 1), scored_R & (score_R >= threshold)

    def of_documents(which_R: NDArray[np.bool_]) -> Array:
        return np.bincount(document_R[which_R], minlength=documents).astype(np.float64)

    is_negative = scored_R & (labels_R == 0)
    above_MM = np.zeros((documents, documents))
    positive, of_positive = score_R[is_positive], document_R[is_positive]
    for document in np.unique(document_R[is_negative]):
        others = np.sort(score_R[is_negative & (document_R == document)])
        above = (np.searchsorted(others, positive, "left") + np.searchsorted(others, positive, "right")) / 2
        above_MM[:, document] = np.bincount(of_positive, above, documents)
    return Scored(
        above_MM,
        of_documents(is_positive),
        of_documents(is_negative),
        of_documents(is_positive & is_found),
        of_documents(is_found),
    )


def _best_threshold(score_R: Array, labels_R: Rows) -> float:
    """The score from which on rows are found, such that F1 is highest; of equal ones the highest."""
    order = np.argsort(-score_R, kind="stable")
    hits, found = np.cumsum(labels_R[order]), np.arange(1, len(order) + 1)
    last = np.append(score_R[order][1:] != score_R[order][:-1], True)  # of equal scores all are found, or none
    f1 = np.where(last, 2 * hits / (labels_R.sum() + found), -1)
    return float(score_R[order][f1.argmax()])
