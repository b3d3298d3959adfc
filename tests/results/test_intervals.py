"""Bootstrap intervals: right on average, paired where SAEs share contexts, the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gsae_ray.errors import UserError
from gsae_ray.evaluation import metrics
from gsae_ray.evaluation.bootstrap import Sequences, intervals_of
from gsae_ray.evaluation.metrics import METRICS, SUMS
from gsae_ray.results import curves
from gsae_ray.results.intervals import Interval, interval, l0_ratio, of

CONTEXTS, ROWS = 200, 50


def held_out(seed: int = 0, contexts: int = CONTEXTS) -> dict[str, np.ndarray]:
    """What does not depend on the SAE: some contexts are harder than others."""
    random = np.random.RandomState(seed)
    hard = random.lognormal(0, 0.3, contexts)
    rows = np.full(contexts, float(ROWS))
    return {
        "rows": rows,
        "positions": rows - 1,
        "x_sq": 128 * rows,
        "centred_sq": 100 * rows,
        "nll_clean": 3 * rows * hard,
        "nll_zero": 7 * rows * hard,
        "hard": hard,
    }


def an_sae(l0: float, loss_recovered: float, seed: int, noise: float = 0.02, data: int = 0) -> Sequences:
    """An SAE whose L0 and damage vary from context to context, most of it with how hard the context is."""
    sums = held_out(data)
    hard, rows = sums.pop("hard"), sums["rows"]
    random = np.random.RandomState(1000 + seed)
    own = 1 + noise * random.standard_normal(CONTEXTS)
    sums["active"] = l0 * rows * hard * own
    sums["nll_spliced"] = sums["nll_clean"] + (1 - loss_recovered) * (sums["nll_zero"] - sums["nll_clean"]) * own
    sums["x_hat_x"] = 90 * rows
    sums["x_hat_sq"] = 81 * rows * own
    sums["error_sq"] = sums["x_sq"] - 2 * sums["x_hat_x"] + sums["x_hat_sq"]
    sums["kl"] = rows * hard
    assert set(sums) == set(SUMS)
    return sums


def family(seed: int, factor: float = 1.0, data: int = 0) -> list[Sequences]:
    points = [(8, 0.90), (16, 0.94), (32, 0.97), (64, 0.985)]
    return [an_sae(factor * l0, quality, 10 * seed + i, data=data) for i, (l0, quality) in enumerate(points)]


@pytest.mark.parametrize("metric", ["l0", "loss_recovered", "gamma", "fvu", "kl", "ce_spliced"])
def test_the_value_is_that_of_all_contexts_and_lies_within(metric: str) -> None:
    sae = an_sae(20, 0.95, seed=1)
    totals = {name: np.sum(values) for name, values in sae.items()}
    found = interval(of(metric), [[sae]])
    assert found.value == pytest.approx(float(METRICS[metric].formula(totals)))
    assert found.low <= found.value <= found.high


def test_an_interval_of_a_mean_is_about_two_standard_errors_wide() -> None:
    random = np.random.RandomState(0)
    active = ROWS * (20 + random.standard_normal(CONTEXTS))
    sae = {**an_sae(20, 0.95, seed=1), "active": active}
    found = interval(of("l0"), [[sae]], draws=4000)
    error = np.std(active / ROWS) / math.sqrt(CONTEXTS)
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.1)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.1)
    narrower = interval(of("l0"), [[sae]], draws=4000, level=0.5)
    assert narrower.high - narrower.low == pytest.approx(2 * 0.674 * error, rel=0.1)


def test_19_of_20_intervals_hold_the_true_value() -> None:
    held = 0
    for seed in range(200):
        active = ROWS * (20 + np.random.RandomState(seed).standard_normal(CONTEXTS))
        found = interval(of("l0"), [[{**an_sae(20, 0.95, seed=1), "active": active}]], draws=200, seed=seed)
        held += found.low <= 20 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_what_makes_a_context_hard_cancels_between_saes_of_the_same_contexts() -> None:
    one, other = an_sae(20, 0.95, seed=1), an_sae(22, 0.95, seed=2)
    alone = interval(of("l0"), [[one]])
    difference = interval(lambda saes: metrics.l0(saes[1]) - metrics.l0(saes[0]), [[one, other]])
    assert difference.value == pytest.approx(2, abs=0.2)
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)
    assert interval(lambda saes: metrics.l0(saes[1]) / metrics.l0(saes[0]), [[one, one]]) == Interval(1, 1, 1)


def test_the_l0_ratio_of_two_groups_is_that_of_their_curves_with_an_interval_round_it() -> None:
    saes = family(1, factor=0.5) + family(2)
    found = interval(l0_ratio(range(4), range(4, 8)), [saes])
    totals = [{name: np.sum(values) for name, values in sae.items()} for sae in saes]
    l0, quality = (np.array([float(of(sums)) for sums in totals]) for of in (metrics.l0, metrics.loss_recovered))
    assert found.value == pytest.approx(curves.l0_ratio((l0[:4], quality[:4]), (l0[4:], quality[4:])))
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.05
    swapped = interval(l0_ratio(range(4, 8), range(4)), [saes])
    assert swapped.value == pytest.approx(1 / found.value)


def test_replicates_are_averaged_and_drawn_too() -> None:
    ratio = l0_ratio(range(4), range(4, 8))
    seeds = [family(1, factor) + family(2) for factor in (0.4, 0.5, 0.6)]
    single = [interval(ratio, [saes]) for saes in seeds]
    found = interval(ratio, seeds)
    assert found.value == pytest.approx(np.mean([one.value for one in single]))
    assert found.high - found.low > 2 * (single[1].high - single[1].low), "replicates differ more than contexts do"


def test_replicates_on_the_same_contexts_share_their_draws_and_others_do_not() -> None:
    sae = an_sae(20, 0.95, seed=1)
    once, twice = interval(of("l0"), [[sae]], draws=3000), interval(of("l0"), [[sae], [sae]], draws=3000)
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.1), "the same contexts tell no more"
    other = interval(of("l0"), [[sae], [an_sae(20, 0.95, seed=1, data=1)]], draws=3000)
    assert other.high - other.low < 0.95 * (once.high - once.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    saes = family(1, 0.5) + family(2)
    ratio = l0_ratio(range(4), range(4, 8))
    assert interval(ratio, [saes], draws=200) == interval(ratio, [saes], draws=200)
    assert interval(ratio, [saes], draws=200) != interval(ratio, [saes], draws=200, seed=1)


def test_where_the_statistic_has_no_value_neither_has_its_interval() -> None:
    apart = [an_sae(8, 0.5, 1), an_sae(16, 0.6, 2), an_sae(8, 0.9, 3), an_sae(16, 0.95, 4)]
    assert all(math.isnan(number) for number in interval(l0_ratio([0, 1], [2, 3]), [apart], draws=50))
    silent = {**an_sae(8, 0.5, 1), "x_hat_x": np.zeros(CONTEXTS), "x_hat_sq": np.zeros(CONTEXTS)}
    assert all(math.isnan(number) for number in interval(of("gamma"), [[silent]], draws=50))


def test_law_6_saes_of_different_contexts_are_never_compared() -> None:
    with pytest.raises(UserError, match="^interval: these SAEs were evaluated on different contexts"):
        interval(of("l0"), [[an_sae(8, 0.9, 1), an_sae(8, 0.9, 1, data=1)]])
    fewer = {name: np.asarray(values)[:-1] for name, values in an_sae(8, 0.9, 1).items()}
    with pytest.raises(UserError, match="different contexts"):
        interval(of("l0"), [[an_sae(8, 0.9, 1), fewer]])


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^metric: unknown 'loss_recoverd'; did you mean 'loss_recovered'\?"):
        of("loss_recoverd")


def test_the_intervals_that_an_evaluation_keeps_are_those_of_its_metrics() -> None:
    sae = an_sae(20, 0.95, seed=1)
    kept = intervals_of(sae)
    names = metrics.resampled()
    assert kept.keys() == {f"{name}_{end}" for name in names for end in ("low", "high")}
    for name in names:
        found = interval(of(name), [[sae]])
        assert (kept[f"{name}_low"], kept[f"{name}_high"]) == pytest.approx((found.low, found.high), rel=1e-12)
    rows_alone = {name: values for name, values in sae.items() if not name.startswith(("nll", "kl", "positions"))}
    assert intervals_of(rows_alone).keys() == {
        f"{name}_{end}" for name in ("l0", "gamma", "fvu") for end in ("low", "high")
    }
    assert intervals_of({}) == {}
