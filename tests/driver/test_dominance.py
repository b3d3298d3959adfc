"""The rule by which trials are stopped, worked out by hand."""

from __future__ import annotations

import math

import pytest
from trials import expand

from gsae_ray.driver.dominance import Dominance, Measured, beats

SLOW, FAST = expand(lr=1e-4, seeds=[0, 1]), expand(lr=1e-3, seeds=[0, 1])
OTHER_GROUP = expand(lr=1e-3, l1_coefficient=[9.0])
GOOD, BAD = Measured(10.0, 0.96), Measured(11.0, 0.90)
QUARTER, HALF = 256, 512
"""Of 1,024 rows."""


def test_one_beats_another_that_is_no_sparser_and_loses_far_more() -> None:
    assert beats(GOOD, BAD, 0.5) and not beats(BAD, GOOD, 0.5)
    assert not beats(GOOD, BAD, 0.25), "early on it has to lose less than a quarter"
    assert beats(GOOD, Measured(11.0, 0.8), 0.25)
    assert not beats(Measured(12.0, 0.96), BAD, 0.5), "it is less sparse"
    assert beats(Measured(11.2, 0.96), BAD, 0.5), "by 2 %, which is as sparse"
    assert not beats(GOOD, Measured(11.0, math.nan), 0.5) and not beats(Measured(1.0, math.nan), BAD, 0.5)


def test_seeds_stop_together_by_the_mean_of_those_that_are_there() -> None:
    rule = Dominance([*SLOW, *FAST, *OTHER_GROUP])
    near = Measured(10.0, 0.949)
    assert rule.report(SLOW[0].name, HALF, near) == []
    assert rule.report(FAST[0].name, HALF, GOOD) == []
    assert rule.report(OTHER_GROUP[0].name, HALF, Measured(1.0, 1.0)) == [], "it is compared with none of them"
    assert rule.report(FAST[1].name, HALF, GOOD) == []
    (beaten,) = rule.report(SLOW[1].name, HALF, Measured(14.0, 0.851))
    assert beaten.trials == (SLOW[0].name, SLOW[1].name) and beaten.by == (FAST[0].name, FAST[1].name)
    assert beaten.measured == pytest.approx((12.0, 0.9)) and beaten.by_measured == pytest.approx((10.0, 0.96))
    assert rule.report(SLOW[1].name, HALF, BAD) == [], "it is said once"


def test_a_seed_that_has_not_begun_stops_with_the_first() -> None:
    rule = Dominance([*SLOW, *FAST])
    rule.report(FAST[0].name, HALF, GOOD)
    (beaten,) = rule.report(SLOW[0].name, HALF, BAD)
    assert beaten.trials == (SLOW[0].name, SLOW[1].name)


def test_the_later_one_may_be_the_better_one() -> None:
    rule = Dominance([*SLOW[:1], *FAST[:1]])
    rule.report(SLOW[0].name, HALF, BAD)
    (beaten,) = rule.report(FAST[0].name, HALF, GOOD)
    assert beaten.trials == (SLOW[0].name,)


def test_rungs_are_compared_each_by_itself() -> None:
    rule = Dominance([*SLOW[:1], *FAST[:1]])
    assert rule.report(FAST[0].name, HALF, GOOD) == []
    assert rule.report(SLOW[0].name, QUARTER, Measured(11.0, 0.6)) == []
    assert len(rule.report(SLOW[0].name, HALF, BAD)) == 1


def test_a_trial_is_judged_at_the_last_rung_that_it_has_come_to() -> None:
    """One that begins later and is better early does not stop one that is ahead, and better there."""
    rule = Dominance([*SLOW[:1], *FAST[:1]])
    rule.report(SLOW[0].name, QUARTER, Measured(10.0, 0.40))
    rule.report(SLOW[0].name, HALF, GOOD)
    assert rule.report(FAST[0].name, QUARTER, BAD) == []
    (beaten,) = rule.report(FAST[0].name, HALF, BAD)
    assert beaten.trials == (FAST[0].name,) and beaten.rung == HALF


def test_one_of_each_group_is_always_left() -> None:
    """The mean of the better one falls with its second seed; the other, which it has stopped, does not stop it."""
    rule = Dominance([*SLOW, *FAST])
    rule.report(SLOW[0].name, HALF, Measured(10.0, 0.80))
    (beaten,) = rule.report(FAST[0].name, HALF, Measured(10.0, 0.90))
    assert beaten.trials == (SLOW[0].name, SLOW[1].name)
    assert rule.report(FAST[1].name, HALF, Measured(10.0, 0.0)) == []


def test_what_has_failed_beats_nobody_and_what_it_has_beaten_is_compared_again() -> None:
    rule = Dominance([*SLOW[:1], *FAST[:1]])
    rule.report(FAST[0].name, HALF, GOOD)
    assert len(rule.report(SLOW[0].name, HALF, BAD)) == 1
    rule.forget(FAST[0].name)
    rule.forgive(SLOW[0].name)
    assert rule.report(SLOW[0].name, HALF, BAD) == []
    assert len(rule.report(FAST[0].name, HALF, Measured(11.0, 0.5))) == 1, "now it is beaten by what it had beaten"
