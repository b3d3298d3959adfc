"""The statistics of a study, against numbers worked out by hand, and against those that the paper reports."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from paper_ratings import paper_ratings
from scipy import stats
from studies import couple_at, make_study, rate

from gsae_ray.study import told
from gsae_ray.study.analysis import Analysis, Group, analyse
from gsae_ray.study.power import EFFECT, power_of
from gsae_ray.study.ratings import Ratings, read_ratings
from gsae_ray.study.statistics import difference, friedman, kruskal, mann_whitney, page, wilcoxon
from gsae_ray.study.subjects import Couple


def upper(z: float) -> float:
    """P(Z > z) of a standard normal variable."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def test_wilcoxon_with_pratts_zeros_is_as_worked_out_by_hand() -> None:
    """Differences 0, 0, 1, 1, -1, 2.

    |d| in order: 0 0 1 1 1 2, so the ranks are 1.5 1.5 4 4 4 6, zeros among them.
    Pratt leaves the ranks of the two zeros out: of those above 0 it is R+ = 4 + 4 + 6 = 14.
    Mean: (6 * 7 - 2 * 3) / 4 = 9. Variance: (6 * 7 * 13 - 2 * 3 * 5) / 24 = 516 / 24, less for the three ties
    (27 - 3) / 48 = 0.5, so 21. z = (14 - 9) / sqrt(21) = 1.0911.
    Wilcoxon's own treatment would drop the zeros first: ranks 2 2 2 4, R+ = 8, mean 5, and another p.
    """
    found = wilcoxon(np.array([0.0, 0, 1, 1, -1, 2]))
    assert found.statistic == 14 and found.n == 6
    assert found.p == pytest.approx(upper(5 / math.sqrt(21)), abs=1e-12)
    assert found.p == pytest.approx(0.1376, abs=1e-4)


def test_a_mean_difference_has_the_bca_interval_of_its_formula() -> None:
    """Forty differences with a long tail, by Efron's formula from 200,000 draws of our own.

    A jackknife mean is (sum - d) / 39, so its deviation from their mean is that of d, over -39, and the acceleration is
    sum(dev^3) / (6 sum(dev^2)^1.5) of the differences themselves. Percentile and basic intervals have other ends, by
    four tolerances and more; an end that is found from 9,999 draws varies by a half of one.
    """
    data = np.exp(1.2 * stats.norm.ppf((np.arange(40) + 0.5) / 40))
    deviations = data - data.mean()
    accelerated = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    means = data[np.random.RandomState(0).randint(40, size=(200_000, 40))].mean(axis=1)
    bias = stats.norm.ppf(np.mean(means < data.mean()))
    ends = []
    for tail in (0.05, 0.95):
        z = bias + stats.norm.ppf(tail)
        ends.append(np.quantile(means, stats.norm.cdf(bias + z / (1 - accelerated * z))))
    found = difference(data, seed=0)
    assert found.mean == pytest.approx(data.mean()) and found.low is not None and found.high is not None
    tolerance = 0.06 * means.std()
    assert [found.low, found.high] == pytest.approx(ends, abs=tolerance)
    percentile = np.quantile(means, [0.05, 0.95])
    for other in (percentile, 2 * data.mean() - percentile[::-1]):
        assert (abs(other - ends) > 4 * tolerance).all()
    assert difference(data, seed=0) == found
    assert difference(data, seed=1).mean == found.mean


def test_mann_whitney_is_as_worked_out_by_hand() -> None:
    """1 2 2 against 0 1 0: ranks of the first are 3.5 5.5 5.5, so U = 14.5 - 6 = 8.5 of 9.

    Variance with ties (two each of 0, 1, 2): 9 / 12 * (7 - (6 + 6 + 6) / 30) = 4.8. With the continuity correction
    z = (8.5 - 4.5 - 0.5) / sqrt(4.8) = 1.5975, twice its tail is .110.
    """
    found = mann_whitney([np.array([1.0, 2, 2]), np.array([0.0, 1, 0])])
    assert found.statistic == 8.5 and found.p == pytest.approx(2 * upper(3.5 / math.sqrt(4.8)), abs=1e-12)


def test_kruskal_wallis_is_as_worked_out_by_hand() -> None:
    """0 1 | 1 2 | 2 2: ranks 1 2.5 | 2.5 5 | 5 5, their sums 3.5, 7.5, 10.

    H = 12 / (6 * 7) * (12.25 + 56.25 + 100) / 2 - 21 = 3.0714, over 1 - (6 + 24) / (216 - 6) = 0.857: 3.5833.
    With two degrees of freedom p = exp(-H / 2).
    """
    found = kruskal([np.array([0.0, 1]), np.array([1.0, 2]), np.array([2.0, 2])])
    assert found.statistic == pytest.approx(3.58333, abs=1e-5)
    assert found.p == pytest.approx(math.exp(-3.58333 / 2), abs=1e-5)


def test_friedman_and_page_are_as_worked_out_by_hand() -> None:
    """Three blocks, three treatments in order: 0 1 2, 0 2 1, 1 2 3, so the rank sums are 3, 7, 8.

    Friedman: 12 / (3 * 3 * 4) * (9 + 49 + 64) - 3 * 3 * 4 = 4.667, p = exp(-4.667 / 2) with two degrees of freedom.
    Page: L = 1 * 3 + 2 * 7 + 3 * 8 = 41. A block's part of L is 14, 13, 13, 11, 11 or 10 by the order of its ranks;
    L >= 41 takes 14 14 14 (1 way) or 14 14 13 (3 * 2 ways), of 6^3 = 216: p = 7 / 216.
    """
    table = np.array([[0.0, 1, 2], [0, 2, 1], [1, 2, 3]])
    assert friedman(table).statistic == pytest.approx(14 / 3)
    assert friedman(table).p == pytest.approx(math.exp(-7 / 3))
    found = page(table)
    assert found.statistic == 41 and found.p == pytest.approx(7 / 216)


def test_what_cannot_be_tested_is_said_and_is_no_crash() -> None:
    none, one = np.zeros(0), np.ones(1)
    assert wilcoxon(none).why == "no pairs" and wilcoxon(np.zeros(4)).why == "all differences are 0"
    assert difference(none, 0).why == "no pairs"
    assert difference(np.ones(3), 0).why == "all differences are the same"
    assert difference(one, 0).mean == 1 and difference(one, 0).low is None
    for test in (mann_whitney, kruskal):
        assert test([one]).why.startswith("not enough groups: 1")
        assert test([one, none]).why.startswith("not enough groups: 1")
        assert test([]).why.startswith("not enough groups: 0")
        assert test([np.ones(3), np.ones(3)]).why == "no value differs from another"
    assert mann_whitney([np.arange(3.0)] * 3).why == "3 groups, and it takes 2"
    for blocked in (friedman, page):
        assert blocked(np.zeros((4, 2))).why.startswith("not enough groups: 2")
        assert blocked(np.zeros((0, 3))).why.startswith("not enough blocks")
        assert blocked(np.ones((4, 3))).why == "no value differs from another"


@pytest.fixture(scope="module")
def paper() -> Analysis:
    return analyse(paper_ratings())


@pytest.mark.parametrize(
    ("name", "pairs", "mean", "low", "high", "p"),
    [
        ("all", 171, 0.13, 0.0, 0.26, 0.060),
        ("pythia", 75, None, -0.07, 0.33, 0.15),
        ("gemma", 96, None, -0.04, 0.29, 0.13),
        ("mlp_out", 57, 0.40, 0.18, 0.63, 0.003),
        ("attn_z", 57, 0.05, -0.16, 0.26, 0.47),
        ("resid_post", 57, -0.07, -0.28, 0.12, 0.59),
    ],
)
def test_data_constructed_to_have_the_papers_statistics_have_them(
    paper: Analysis, name: str, pairs: int, mean: float | None, low: float, high: float, p: float
) -> None:
    """Of its human study; see `paper_ratings`. Ends to a step of the mean of 57 differences, and rounding."""
    found = next(group.found for group in paper.groups if group.name == name)
    assert found.pairs == pairs and found.mean is not None and found.low is not None and found.high is not None
    assert mean is None or found.mean == pytest.approx(mean, abs=0.005)
    assert [found.low, found.high] == pytest.approx([low, high], abs=1 / 57 + 0.005)
    digits = 0.0005 if p < 0.1 else 0.005
    assert found.tested.p == pytest.approx(p, abs=digits)


@pytest.mark.parametrize(
    ("question", "test", "labels", "differences"),
    [
        ("between models", "Mann-Whitney", 0.84, 0.95),
        ("between raters", "Kruskal-Wallis", None, 0.71),
        ("between raters, pythia", "Friedman", 0.13, 0.05),
        ("between raters, gemma", "Friedman", 0.03, 0.76),
        ("between sites", "Friedman", 0.92, 0.047),
        ("between layers, pythia", "Friedman", 0.57, 0.05),
        ("rising with the layer, pythia", "Page", 0.50, 0.13),
        ("between layers, gemma", "Friedman", 0.003, 0.64),
        ("rising with the layer, gemma", "Page", 0.37, 0.31),
    ],
)
def test_the_papers_tests_of_its_appendix_come_out_on_those_data(
    paper: Analysis, question: str, test: str, labels: float | None, differences: float
) -> None:
    """To the paper's digits, or a step of the statistic: of Page's L that is up to .015.

    The one of them that those data have not, since they were not found with it, is Kruskal-Wallis of labels.
    """
    (found,) = (row for row in paper.dependences if row.question == question)
    assert found.labels.test == found.differences.test == test
    for tested, expected in ((found.labels, labels), (found.differences, differences)):
        digits = 0.0005 if expected in (0.003, 0.047) else 0.015 if test == "Page" else 0.007
        assert expected is None or tested.p == pytest.approx(expected, abs=digits)


def test_all_tests_of_the_papers_study_rest_on_as_many_blocks_as_it_has(paper: Analysis) -> None:
    tests = {row.question: row for row in paper.dependences}
    sites = tests["between sites"]
    assert sites.differences.n == 57 and sites.labels.n == 114, (
        "blocks: model, layer, rater, and of labels architecture"
    )
    assert tests["between raters, gemma"].differences.n == 12 and tests["between raters, gemma"].labels.n == 24
    assert tests["between layers, pythia"].differences.n == 15
    assert all(test.p is not None for row in paper.dependences for test in (row.labels, row.differences))
    assert paper.counts["gated"].keys() == {"no", "maybe", "yes"}
    assert {sum(labels.values()) for labels in paper.counts.values()} == {171}


def test_power_is_that_of_studies_that_are_simulated_otherwise(paper: Analysis) -> None:
    """Studies as counts of -2 … 2, each with Pratt's z by its formula, worked out as in the first test above.

    A test of the mean would take ((1.645 + 0.842) sd / 0.13)^2 = 379 pairs; Wilcoxon's, of ranks, is a little weaker
    on these data. That p = .060 at 171 pairs goes with a power of about a half.
    """
    found, values = paper.power, np.arange(-2.0, 3)
    assert found.pairs is not None and found.features == 2 * found.pairs
    differences = paper_ratings().pairs["difference"]
    observed = np.array([(differences == value).mean() for value in values])
    tilts = np.linspace(-0.2, 0.2, 4001)
    weights = observed * np.exp(tilts[:, None] * values)
    weights /= weights.sum(1, keepdims=True)
    chosen = weights[np.argmin(abs(weights @ values - EFFECT))]
    for pairs, power in ((found.pairs, 0.80), (171, found.of_this)):
        lower, low, zero, high, higher = np.random.RandomState(1).multinomial(pairs, chosen, size=20_000).T
        ones, twos = low + high, lower + higher
        rank_one, rank_two = zero + (ones + 1) / 2, zero + ones + (twos + 1) / 2
        mean = (pairs * (pairs + 1) - zero * (zero + 1)) / 4
        cubes = pairs * (pairs + 1) * (2 * pairs + 1) - zero * (zero + 1) * (2 * zero + 1)
        variance = cubes / 24 - (ones**3 - ones + twos**3 - twos) / 48
        z = (rank_one * high + rank_two * higher - mean) / np.sqrt(variance)
        assert np.mean(z > 1.6449) == pytest.approx(power, abs=0.03)
    assert 379 < found.pairs < 480 and found.of_this == pytest.approx(0.45, abs=0.06)


def test_power_that_cannot_be_said_is_said_so() -> None:
    few = power_of(np.array([-1.0, 1, 0] * 3), 0)
    assert few.why == "pairs rated so far: 9, and it takes 10 to know how differences vary"
    assert few.pairs is None and few.of_this is None
    assert power_of(np.array([-1.0, 0] * 5), 0).why == "all differences lie on one side of that mean"
    assert power_of(np.ones(10), 0).pairs is None


def made(rows: list[tuple[str, int | None, str, str, int, float | None]]) -> Ratings:
    """Ratings of (model, layer, point, architecture, pair, label) by one rater."""
    names = ["model", "layer", "point", "architecture", "pair", "label"]
    table = pd.DataFrame(rows, columns=names).assign(rater="rater 1", explanation="", seconds=1.0, place=1)
    table = table.assign(experiment="e")
    table["site"] = table["point"] + table["layer"].astype(str)
    table = table.astype({"label": "Float64", "layer": "Int64", "seconds": "Float64"})
    return Ratings("gated", "standard", table)


def test_a_pair_counts_once_both_of_it_are_rated() -> None:
    found = analyse(
        made(
            [
                ("m", 1, "mlp_out", "gated", 0, 2),
                ("m", 1, "mlp_out", "standard", 0, 0),
                ("m", 1, "mlp_out", "gated", 1, 1),
                ("m", 1, "mlp_out", "standard", 1, None),
                ("m", 2, "mlp_out", "standard", 0, 1),
                ("m", 2, "mlp_out", "gated", 0, 0),
            ]
        )
    )
    assert (found.items, found.rated, found.pairs, found.all_pairs) == (6, 5, 2, 3)
    assert found.groups[0].found.mean == (2 - 1) / 2
    assert found.counts == {"gated": {"no": 1, "maybe": 1, "yes": 1}, "standard": {"no": 1, "maybe": 1, "yes": 0}}


def test_pairs_of_two_experiments_at_one_site_of_one_model_stay_apart(tmp_path: Path) -> None:
    """Two sweeps of one model, of other widths, say: each of their couples has pairs 0 and 1 of each rater."""
    path = tmp_path / "study.db"
    wide = Couple(*(dataclasses.replace(subject, experiment="wide") for subject in couple_at(1)))
    make_study(path, [couple_at(1), wide], pairs=2, raters=2)
    for rater in (1, 2):
        for place in range(1, 9):
            rate(path, rater, place, label=place % 3)
    ratings = read_ratings([path])
    found = analyse(ratings)
    assert (found.items, found.pairs, found.all_pairs) == (16, 8, 8)
    assert ratings.pairs.groupby(["experiment", "rater"]).size().tolist() == [2, 2, 2, 2]


def test_nothing_rated_and_sites_without_layers_are_analysed(paper: Analysis) -> None:
    empty = analyse(made([("m", None, "output", "gated", 0, None), ("m", None, "output", "standard", 0, None)]))
    assert empty.pairs == 0 and empty.groups == [Group("all", "all", difference(np.zeros(0), 0))]
    assert all(test.why for row in empty.dependences for test in (row.labels, row.differences))
    nowhere = analyse(made([("m", None, "output", "gated", 0, 2), ("m", None, "output", "standard", 0, 1)]))
    reasons = list(told.reasons(nowhere))
    assert any("Page rising with the layer, m: not enough groups" in line for line in reasons)
    assert list(told.reasons(paper)) == []
    (line,) = told.power(empty.power)
    assert "cannot be said: pairs rated so far: 0, and it takes 10" in line
    for shown in (told.counts, told.differences, told.dependences):
        for analysis in (empty, nowhere, paper):
            assert len({len(cells) for cells in shown(analysis).values()}) == 1
