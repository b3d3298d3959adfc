"""`scheduler`: which trials are compared, after how many rows, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from trials import expand

from gsae_ray.config.scheduler import SchedulerSettings, check_scheduler, compared, middle_first, rungs
from gsae_ray.errors import UserError

ON = SchedulerSettings(stop_dominated=True)


def of_tokens(tokens: int, grace: int | None = None, **training: Any) -> tuple[int, ...]:
    (trial,) = expand(tokens=tokens, log_every_tokens=64, **training)
    return rungs(trial, SchedulerSettings(stop_dominated=True, grace_tokens=grace))


def test_a_trial_is_compared_after_grace_tokens_and_each_doubling() -> None:
    assert of_tokens(6400, 800) == (800, 1600, 3200)
    assert of_tokens(6400) == (1600, 3200), "a quarter of the run"
    assert of_tokens(6400, l1_warmup=0.4) == (3200,), (
        "when the coefficient has risen; as others, whose coefficient does not rise so long"
    )
    assert of_tokens(6400, 6336) == (6336,), "at the last row but one"
    assert of_tokens(6400, 6337) == (), "the next row is the end"


def test_it_is_off_by_default() -> None:
    (trial,) = expand(tokens=6400)
    assert rungs(trial, SchedulerSettings()) == () and compared([trial], SchedulerSettings()) == []


def test_trials_of_one_site_width_and_sparsity_are_compared() -> None:
    trials = [t for lr in (1e-3, 2e-3) for t in expand(l1_coefficient=[1.0, 2.0], lr=lr, seeds=[0, 1])]
    alone = expand(l1_coefficient=[4.0])
    assert compared([*trials, *alone], ON) == trials


def test_the_middle_of_the_learning_rates_comes_first() -> None:
    trials = [t for lr in (1e-4, 1e-3, 1e-2, 1e-1) for t in expand(lr=lr, l1_coefficient=[1.0, 2.0])]
    rates = [trial.training.lr for trial in middle_first(trials)]
    assert rates == [1e-2, 1e-2, 1e-3, 1e-3, 1e-1, 1e-1, 1e-4, 1e-4]
    alone = expand(l1_coefficient=[4.0, 8.0], seeds=[0, 1])
    assert middle_first(alone) == alone, "else the order stays"


def test_seeds_are_no_settings_to_compare() -> None:
    with pytest.raises(UserError, match=r"^scheduler\.stop_dominated: no two settings .* training\.lr: \["):
        check_scheduler(expand(seeds=[0, 1]), ON)


def test_grace_tokens_without_stop_dominated_is_refused() -> None:
    with pytest.raises(UserError, match=r"^scheduler\.grace_tokens: nothing reads it without stop_dominated: true"):
        check_scheduler(expand(), SchedulerSettings(grace_tokens=100))


def test_a_comparison_after_the_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"^scheduler\.grace_tokens: after 1,024 rows .* \(the longest has 1,024\)"):
        check_scheduler(expand(tokens=1024), SchedulerSettings(stop_dominated=True, grace_tokens=1024))


def test_a_comparison_while_the_coefficient_rises_is_refused() -> None:
    trials = [*expand(tokens=6400, l1_warmup=0.5, lr=1e-3), *expand(tokens=6400, l1_warmup=0.5, lr=2e-3)]
    with pytest.raises(UserError, match=r"^scheduler\.grace_tokens: .* rises for 3,200 rows .* give 3,200 or more"):
        check_scheduler(trials, SchedulerSettings(stop_dominated=True, grace_tokens=3199))
    check_scheduler(trials, SchedulerSettings(stop_dominated=True, grace_tokens=3200))
