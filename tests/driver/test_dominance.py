"""The rule by which trials are stopped, worked out by hand."""

from __future__ import annotations

import math

import pytest
from trials import expand

from gsae_ray.driver.dominance import Dominance, Measured, beats

SLOW, FAST = expand(lr=1e-4, seeds=[0, 1]), expand(lr=1e-3, seeds=[0, 1])
OTHER_GROUP = expand(lr=1e-3, l1_coefficient=[9.0])
GOOD, BAD = Measured(10.0, 0.95), Measured(11.0, 0.90)


def test_one_beats_another_that_is_no_sparser_and_loses_more() -> None:
    assert beats(GOOD, BAD) and not beats(BAD, GOOD)
    assert not beats(Measured(12.0, 0.95), BAD), "it is less sparse"
    assert beats(Measured(11.2, 0.95), BAD), "by 2 %, which is as sparse"
    assert not beats(Measured(10.0, 0.905), BAD), "it loses 5 % less"
    assert not beats(GOOD, Measured(11.0, math.nan)) and not beats(Measured(1.0, math.nan), BAD)


def test_seeds_stop_together_by_the_mean_of_those_that_are_there() -> None:
    rule = Dominance([*SLOW, *FAST, *OTHER_GROUP])
    near = Measured(10.0, 0.949)
    assert rule.report(SLOW[0].name, 0, near) == []
    assert rule.report(FAST[0].name, 0, GOOD) == []
    assert rule.report(OTHER_GROUP[0].name, 0, Measured(1.0, 1.0)) == [], "it is compared with none of them"
    assert rule.report(FAST[1].name, 0, GOOD) == []
    (beaten,) = rule.report(SLOW[1].name, 0, Measured(14.0, 0.851))
    assert beaten.trials == (SLOW[0].name, SLOW[1].name) and beaten.by == (FAST[0].name, FAST[1].name)
    assert beaten.measured == pytest.approx((12.0, 0.9)) and beaten.by_measured == pytest.approx((10.0, 0.95))
    assert rule.report(SLOW[1].name, 0, BAD) == [], "it is said once"


def test_a_seed_that_has_not_begun_stops_with_the_first() -> None:
    rule = Dominance([*SLOW, *FAST])
    rule.report(FAST[0].name, 0, GOOD)
    (beaten,) = rule.report(SLOW[0].name, 0, BAD)
    assert beaten.trials == (SLOW[0].name, SLOW[1].name)


def test_the_later_one_may_be_the_better_one() -> None:
    rule = Dominance([*SLOW[:1], *FAST[:1]])
    rule.report(SLOW[0].name, 0, BAD)
    (beaten,) = rule.report(FAST[0].name, 0, GOOD)
    assert beaten.trials == (SLOW[0].name,)


def test_rungs_are_compared_each_by_itself() -> None:
    rule = Dominance([*SLOW[:1], *FAST[:1]])
    assert rule.report(FAST[0].name, 1, GOOD) == []
    assert rule.report(SLOW[0].name, 0, BAD) == []
    assert len(rule.report(SLOW[0].name, 1, BAD)) == 1
