"""The arithmetic of frontiers: Pareto points, L0 at equal loss recovered, and what may not be compared."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsae_ray.errors import UserError
from gsae_ray.results.comparison import check_recipes, check_tokens, l0_ratio, log_l0_at, own_saes, recipes_differ
from gsae_ray.results.curves import pareto

points = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(points)
def test_pareto_keeps_the_points_that_no_other_beats(values: list[tuple[int, int]]) -> None:
    def beaten(l0: int, quality: int) -> bool:
        return any(a <= l0 and q >= quality and (a, q) != (l0, quality) for a, q in values)

    l0, quality = np.array(values, dtype=float).T
    assert pareto(l0, quality).tolist() == [not beaten(*point) for point in values]


@given(points)
def test_along_a_frontier_both_l0_and_quality_rise(values: list[tuple[int, int]]) -> None:
    l0, quality = np.array(values, dtype=float).T
    kept = pareto(l0, quality)
    distinct = sorted(set(zip(l0[kept], quality[kept], strict=True)))
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(distinct, distinct[1:], strict=False))


def curve(*values: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=["l0", "loss_recovered"]).assign(recipe="norm_weighted/modern", tokens=1024)


def test_references_are_no_hindrance_to_a_comparison_though_nothing_is_known_of_their_training() -> None:
    own = curve((10, 0.90), (40, 0.97)).assign(origin="own")
    theirs = curve((5, 0.99)).assign(origin="theirs", recipe="", tokens=pd.NA)
    rows = pd.concat([own.astype({"tokens": "Int64"}), theirs.astype({"tokens": "Int64"})], ignore_index=True)
    check_recipes(rows)
    check_tokens(rows)
    assert own_saes(rows)["l0"].tolist() == [10, 40]
    with pytest.raises(UserError, match="2 recipes"):
        check_recipes(rows, own.assign(recipe="paper/paper"))
    with pytest.raises(UserError, match="^origin: there are references among these SAEs"):
        l0_ratio(rows, own)
    assert l0_ratio(own, own) == 1.0
    assert math.isnan(l0_ratio(rows, own, mixed_recipes=True)), "theirs is the only one on that frontier"


def test_architectures_with_an_objective_of_their_own_are_compared_on_the_same_schedule() -> None:
    gated, topk = curve((10, 0.90)), curve((10, 0.91)).assign(recipe="unit_norm/modern")
    check_recipes(gated, topk)
    check_recipes(topk, gated.assign(recipe="paper/modern"))
    for other in ("unit_norm/paper", "unit_norm/modern+lr_decay=0"):
        with pytest.raises(UserError, match="2 recipes"):
            check_recipes(gated, topk.assign(recipe=other))
    with pytest.raises(UserError, match="3 recipes"):
        check_recipes(gated, topk, gated.assign(recipe="paper/modern"))
    assert recipes_differ(["paper/modern", "norm_weighted/modern"])
    assert not recipes_differ([]) and not recipes_differ(["unit_norm/modern"])


def test_log_l0_is_interpolated_between_frontier_points() -> None:
    rows = curve((40, 0.95), (10, 0.90), (160, 0.97), (100, 0.91))  # the last is beaten
    assert log_l0_at(rows, 0.90) == pytest.approx(math.log(10))
    assert log_l0_at(rows, 0.925) == pytest.approx(math.log(20))
    assert log_l0_at(rows, 0.96) == pytest.approx(math.log(80))
    assert log_l0_at(rows, 0.97) == pytest.approx(math.log(160))


@pytest.mark.parametrize("loss_recovered", [0.89, 0.98])
def test_log_l0_is_not_extrapolated(loss_recovered: float) -> None:
    assert math.isnan(log_l0_at(curve((10, 0.90), (40, 0.97)), loss_recovered))
    assert math.isnan(log_l0_at(curve((10, loss_recovered)), loss_recovered)), "one point is no curve"


def test_l0_ratio_is_the_mean_ratio_at_equal_loss_recovered() -> None:
    base = curve((20, 0.90), (80, 0.98))
    assert l0_ratio(curve((10, 0.90), (40, 0.98)), base) == pytest.approx(0.5)
    assert l0_ratio(base, base) == pytest.approx(1.0)
    # ln ratio goes linearly from -ln 2 to -ln 8 over the common range 0.90 … 0.98: its mean is -ln 4
    assert l0_ratio(curve((10, 0.90), (10.0001, 0.98)), base) == pytest.approx(0.25, rel=1e-4)
    assert l0_ratio(base, curve((10, 0.90), (40, 0.98))) == pytest.approx(2.0)


def test_l0_ratio_covers_only_what_both_frontiers_cover() -> None:
    base = curve((20, 0.90), (40, 0.92), (80, 0.98))
    better = curve((5, 0.5), (10, 0.90), (20, 0.92), (21, 0.915))  # the last is beaten
    assert l0_ratio(better, base) == pytest.approx(0.5)


def test_l0_ratio_refuses_to_mix_recipes_unless_told_to() -> None:
    base = curve((20, 0.90), (80, 0.98))
    better = curve((10, 0.90), (40, 0.98)).assign(recipe="paper/modern")
    with pytest.raises(UserError, match="2 recipes.*norm_weighted/modern, paper/modern"):
        l0_ratio(better, base)
    with pytest.raises(UserError, match="2 recipes"):
        l0_ratio(pd.concat([better, base]), pd.concat([better, base]))
    assert l0_ratio(better, base, mixed_recipes=True) == pytest.approx(0.5)


def test_l0_ratio_refuses_to_mix_numbers_of_tokens_unless_told_to() -> None:
    base, better = curve((20, 0.90), (80, 0.98)), curve((10, 0.90), (40, 0.98)).assign(tokens=2048)
    with pytest.raises(UserError, match="^tokens: these SAEs were trained on 1,024 and 2,048 tokens; .*--tokens 2048"):
        l0_ratio(better, base)
    assert l0_ratio(better, base, mixed_tokens=True) == pytest.approx(0.5)


def test_l0_ratio_of_frontiers_that_share_no_range_is_nan() -> None:
    assert math.isnan(l0_ratio(curve((1, 0.1), (2, 0.2)), curve((1, 0.3), (2, 0.4))))
    assert math.isnan(l0_ratio(curve((1, 0.1)), curve((1, 0.1))))


def test_the_names_that_the_readme_imports_from_results_are_there() -> None:
    """Without importing what they do not need: `curves` and `intervals` are numpy only."""
    from gsae_ray import results

    assert all(callable(getattr(results, name)) for name in results.__all__)
    script = "import sys, gsae_ray.results.intervals; print('mlflow' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_l0_ratio_is_not_moved_by_points_that_others_beat() -> None:
    better, base = curve((10, 0.90), (20, 0.94), (40, 0.97)), curve((20, 0.88), (40, 0.925), (80, 0.96))
    expected = l0_ratio(better, base)
    for quality in (0.5, -5.0):
        beaten = curve((300, quality))
        assert l0_ratio(pd.concat([better, beaten]), pd.concat([base, beaten])) == pytest.approx(expected, rel=1e-12)
