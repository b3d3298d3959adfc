"""The metrics of an evaluation, and the sums over held-out contexts that they follow from. numpy only.

Each metric is a ratio of sums, never a mean of ratios. It is written for arrays, so that the same lines give the
metric of a whole evaluation and those of a thousand resampled ones (see `results.intervals`).

Adding a metric that follows from `SUMS` is one decorated function here: storage, MLflow, the frontier and its tables
take their names from `METRICS`. Its `since` raises the schema version, so that the next launch of a sweep evaluates the
SAEs again that were evaluated before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gsae_ray.errors import UserError

Array = NDArray[np.float64]
Sums = Mapping[str, Any]
"""Name of `SUMS` -> the sum over some contexts: a number, or an array with one sum for each choice of contexts."""
Formula = Callable[[Sums], Array]

SUMS = {
    "rows": "rows",
    "active": "active features",
    "x_sq": "‖x‖²",
    "x_hat_sq": "‖x̂‖²",
    "x_hat_x": "x̂·x",
    "error_sq": "‖x − x̂‖²",
    "centred_sq": "‖x − E x‖², the mean being that of all held-out rows",
    "positions": "positions whose next token is scored",
    "nll_clean": "−ln p(next token) of the model as it is",
    "nll_spliced": "the same with x̂ in place of x",
    "nll_zero": "the same with 0 in place of x",
    "kl": "KL(clean ‖ spliced)",
}
"""Name -> what is summed, over the rows (or scored positions) of a context."""
FEATURE_SUMS = {
    "true_active": "true features that are active",
    "with_child": "pairs of a true feature and its child, both found by the SAE, of which the child is active",
    "absorbed": "those of them whose child's latent is active, and the parent's is not",
}
"""The same where the true features of the rows are known (`evaluation.known_features`)."""
WHOLE = {
    "alive_fraction": "share of features that were active on some held-out row",
    "dense_heldout": "share of features that were active on more than a tenth of the held-out rows",
    "mcc": "mean |cosine| of true features with the decoder rows that are matched to them",
    "feature_precision": "mean precision of true features",
    "feature_recall": "mean recall of true features",
    "feature_f1": "mean F1 of true features",
    "splitting": "mean number of latents of a true feature that has any",
    "probe_auc": "mean AUC of probes on five features",
    "probe_auc_1": "mean AUC of probes on one feature",
    "probe_f1": "mean F1 of probes on five features",
    "probe_f1_1": "mean F1 of probes on one feature",
    "probe_auc_raw": "mean AUC of probes on all coordinates of the activations",
    "probe_auc_raw_1": "mean AUC of probes on one of them",
    "probe_auc_raw_5": "mean AUC of probes on five of them",
    "probe_f1_raw": "mean F1 of probes on all coordinates of the activations",
    "probe_f1_raw_1": "mean F1 of probes on one of them",
    "probe_f1_raw_5": "mean F1 of probes on five of them",
}
"""Name -> what is known of an evaluation as a whole: no sum over contexts gives it."""
RATED = {
    "detection": "mean balanced accuracy of a rater that tells by explanations where features are on",
    "fuzzing": "the same of one that tells by them whether marks are right",
}
"""Name -> what a language model's ratings of features give (`storage.ratings`): no evaluation does."""
TRAINING = {"dead_train": "dead_fraction", "dense_train": "dense_fraction"}
"""Metric -> what the last metric row of training calls it: no evaluation gives it."""
DENSE_SHARE = 0.1
"""A feature that is active on more than this share of rows is dense."""
Takes = Literal["rows", "model", "features", "training", "probes", "ratings"]
"""What a metric takes: rows and what an SAE makes of them; a language model's losses too; the true features too; or
nothing of these, but what was logged in training (`TRAINING`), probes on labelled text (`evaluation.probing`), or a
language model's ratings of features (`RATED`)."""
BESIDE = ("features", "probes", "ratings")
"""Of metrics that take these there are columns only where some SAE has them."""
Better = Literal["high", "low", "one"]
"""Which values of a metric are the better ones: the higher, the lower, those nearer to 1."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that an evaluation gives."""

    formula: Formula
    """The metric from the sums over some contexts; an array from arrays of sums."""
    meaning: str
    since: int
    """The schema version from which on evaluations carry it."""
    resampled: bool
    """Whether it can be had of resampled contexts: whether `SUMS` are all that it takes."""
    column: bool
    """Whether it is a column of `gsae_ray.frontier`."""
    table: bool
    """Whether it is a column of the table that the command line prints, too."""
    better: Better | None = "high"
    """Which SAE is the better one by it; None: it tells nothing of that."""
    takes: Takes = "rows"
    """See `BESIDE`."""
    interval: bool = False
    """Whether the evaluation itself brings the ends of its interval along, which sums over contexts do not give."""


METRICS: dict[str, Metric] = {}
"""Name -> metric, in the order of the frontier's columns."""


def metric(
    meaning: str,
    *,
    since: int,
    resampled: bool = True,
    column: bool = True,
    table: bool = False,
    better: Better | None = "high",
    takes: Takes = "rows",
    interval: bool = False,
) -> Callable[[Formula], Formula]:
    """Adds a function to `METRICS`, under its own name.

    Args:
        meaning: one line.
        since: one more than `schema_version()` was, for a metric that evaluations of before do not carry.
        resampled: as `Metric.resampled`.
        column: as `Metric.column`.
        table: as `Metric.table`.
        better: as `Metric.better`.
        takes: as `Metric.takes`.
        interval: as `Metric.interval`.
    """

    def add(formula: Formula) -> Formula:
        METRICS[formula.__name__] = Metric(formula, meaning, since, resampled, column, table, better, takes, interval)
        return formula

    return add


@metric("mean number of active features of a row", since=1, table=True, better=None)
def l0(s: Sums) -> Array:
    return _ratio(s["active"], s["rows"])


@metric(
    "1 − (CE(x̂) − CE(clean)) / (CE(zero) − CE(clean)); may exceed 1 or be negative, never clipped",
    since=1,
    table=True,
    takes="model",
)
def loss_recovered(s: Sums) -> Array:
    return 1 - _ratio(ce_spliced(s) - ce_clean(s), ce_zero(s) - ce_clean(s))


@metric("relative reconstruction bias E‖x̂‖² / E[x̂·x]; below 1 is shrinkage", since=1, table=True, better="one")
def gamma(s: Sums) -> Array:
    return _ratio(s["x_hat_sq"], s["x_hat_x"])


@metric("fraction of variance unexplained, E‖x − x̂‖² / E‖x − E x‖²", since=1, table=True, better="low")
def fvu(s: Sums) -> Array:
    return _ratio(s["error_sq"], s["centred_sq"])


@metric("KL(clean ‖ spliced) in nats, mean over positions", since=1, better="low", takes="model")
def kl(s: Sums) -> Array:
    return _ratio(s["kl"], s["positions"])


@metric("next-token loss in nats", since=1, better=None, takes="model")
def ce_clean(s: Sums) -> Array:
    return _ratio(s["nll_clean"], s["positions"])


@metric("next-token loss with x̂ in place of x", since=1, better="low", takes="model")
def ce_spliced(s: Sums) -> Array:
    return _ratio(s["nll_spliced"], s["positions"])


@metric("next-token loss with 0 in place of x", since=1, better=None, takes="model")
def ce_zero(s: Sums) -> Array:
    return _ratio(s["nll_zero"], s["positions"])


@metric("share of features that were active on some held-out row", since=1, resampled=False, table=True)
def alive_fraction(s: Sums) -> Array:
    return np.asarray(s["alive_fraction"])  # of all contexts together: no sum over contexts gives it


@metric("share of features that were active on no held-out row", since=2, resampled=False, better="low")
def dead_heldout(s: Sums) -> Array:
    return 1 - alive_fraction(s)


@metric(
    "share of features that were active on more than 10 % of the held-out rows",
    since=2,
    resampled=False,
    better="low",
    interval=True,
)
def dense_heldout(s: Sums) -> Array:
    return np.asarray(s["dense_heldout"])


@metric(
    "share of features that were active on no row of the last interval of training (training.log_every_tokens)",
    since=1,
    resampled=False,
    better="low",
    takes="training",
)
def dead_train(s: Sums) -> Array:
    return np.asarray(s["dead_train"])


@metric(
    "share of features that were active on more than 10 % of the rows of that interval",
    since=1,
    resampled=False,
    better="low",
    takes="training",
)
def dense_train(s: Sums) -> Array:
    return np.asarray(s["dense_train"])


def _as_it_is(
    name: str, meaning: str, takes: Takes, *, better: Better | None = "high", table: bool = False, interval: bool = True
) -> None:
    """Adds a metric that was measured as a whole, not as sums over contexts."""

    def formula(s: Sums) -> Array:
        return np.asarray(s[name])

    formula.__name__ = name
    metric(meaning, since=1, resampled=False, table=table, better=better, takes=takes, interval=interval)(formula)


_as_it_is(
    "mcc",
    "mean over the true features of |cosine| with the decoder row of the alive latent that is matched to them, one to "
    "one; 0 where none is left",
    "features",
    table=True,
    interval=False,
)
_as_it_is(
    "feature_precision",
    "of the rows on which its matched latent is active, the share on which a true feature is; mean over the features",
    "features",
    table=True,
    interval=False,
)
_as_it_is(
    "feature_recall",
    "of the rows on which a true feature is active, the share on which its matched latent is; mean over the features",
    "features",
    table=True,
    interval=False,
)
_as_it_is(
    "feature_f1",
    "harmonic mean of a true feature's precision and recall; mean over the features",
    "features",
    interval=False,
)


@metric(
    "share of a child's activity on which its parent's latent is off and its own on; over all pairs that are found",
    since=1,
    table=True,
    better="low",
    takes="features",
)
def absorption(s: Sums) -> Array:
    return _ratio(s["absorbed"], s["with_child"])


@metric(
    "latents that are mostly active on one true feature, and nearest to it, ÷ the true features that have such",
    since=1,
    resampled=False,
    table=True,
    better="one",
    takes="features",
)
def splitting(s: Sums) -> Array:
    return np.asarray(s["splitting"])


@metric("mean number of active true features of a row", since=1, table=True, better=None, takes="features")
def true_l0(s: Sums) -> Array:
    return _ratio(s["true_active"], s["rows"])


for _of, _named in {"auc": "AUC", "f1": "F1"}.items():
    _kinds: list[tuple[str, str, Better | None]] = [
        ("", f"{_named} of logistic regressions on the 5 features that tell a class most", "high"),
        ("_1", "the same of the 1 feature that does", "high"),
        ("_raw", f"{_named} of logistic regressions on all coordinates of the activations", None),
        ("_raw_1", "the same of the 1 coordinate that tells a class most", None),
        ("_raw_5", "the same of the 5 coordinates that do", None),
    ]
    for _probe, _meaning, _better in _kinds:
        _as_it_is(f"probe_{_of}{_probe}", f"{_meaning}; mean over tasks", "probes", better=_better)
for _score, _meaning in RATED.items():
    _as_it_is(_score, f"{_meaning}; over the features that were rated", "ratings", table=True)


@metric("rows evaluated", since=1, resampled=False, column=False, better=None)
def rows(s: Sums) -> Array:
    return np.asarray(s["rows"], np.float64)


def schema_version() -> int:
    """The version of the evaluations that are made now; those of an older one lack metrics."""
    return max(metric.since for metric in METRICS.values())


def columns(beside: bool = False) -> list[str]:
    """The metrics that are columns of `gsae_ray.frontier`: of every one, or those of `BESIDE`."""
    return [name for name, metric in METRICS.items() if metric.column and (metric.takes in BESIDE) == beside]


def quality(s: Sums) -> Array:
    """What a frontier has beside L0: loss recovered; without a language model 1 − FVU, the explained variance."""
    return loss_recovered(s) if "nll_spliced" in s else 1 - fvu(s)


def resampled(features: bool = False) -> dict[str, Formula]:
    """Name -> formula of the metrics that can be had of resampled contexts; `features`: those too that take these."""
    taken = [name for name, metric in METRICS.items() if features or metric.takes != "features"]
    return {name: METRICS[name].formula for name in taken if METRICS[name].resampled}


class AbsentSumError(UserError):
    """An evaluation lacks what a metric takes: without a language model there are no cross-entropies."""


class Totals(dict[str, Any]):
    """The sums that an evaluation has, as a formula takes them.

    Raises:
        AbsentSumError: one is asked for that is known, and not among them.
        KeyError: there is no such sum at all.
    """

    def __missing__(self, name: str) -> Any:
        if (meaning := {**SUMS, **FEATURE_SUMS, **WHOLE, **TRAINING, **RATED}.get(name)) is not None:
            raise AbsentSumError(f"{name}: this evaluation has no such sum ({meaning}), and no metric that takes it")
        raise KeyError(name)


class Evaluation(NamedTuple):
    """An SAE on the held-out contexts of its site."""

    metrics: dict[str, float]
    """Every one of `METRICS` whose sums are there: without a language model there are no cross-entropies."""
    sequences: dict[str, list[float]]
    """Name of `SUMS` or `FEATURE_SUMS` -> a number for each held-out context (or group of rows), in a fixed order."""
    schema: int
    """`schema_version()` in the process that computed the metrics."""
    ends: Mapping[str, float] = {}
    """`{metric}_low` and `{metric}_high` of intervals that `sequences` do not give."""

    @classmethod
    def of(cls, sequences: dict[str, list[float]], alive_fraction: float, **whole: float) -> Evaluation:
        """The evaluation with those sums of each context; metrics of which a sum is absent are left out.

        Args:
            sequences: as the field.
            alive_fraction: as in `WHOLE`.
            **whole: what else of `WHOLE` is known.

        Raises:
            KeyError: a formula asks for what is none of them.
        """
        sums = {name: np.sum(values) for name, values in sequences.items()}
        totals = Totals(sums, alive_fraction=alive_fraction, **whole)
        metrics: dict[str, float] = {}
        for name, metric in METRICS.items():
            try:
                metrics[name] = float(metric.formula(totals))
            except AbsentSumError:
                continue
        return cls(metrics, sequences, schema_version())


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Array:
    """NaN where the denominator is 0: shrinkage of what gives nothing, loss recovered where nothing can be lost."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    defined = denominator != 0
    return np.where(defined, numerator / np.where(defined, denominator, 1), np.nan)
