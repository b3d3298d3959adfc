"""A trial whose process dies is tried again as long as it gets on."""

from __future__ import annotations

from gsae_ray.driver.trial_deaths import DEATHS_WITHOUT_CHECKPOINT, TrialDeaths


def test_a_trial_that_dies_at_the_same_place_every_time_fails() -> None:
    deaths = TrialDeaths(limit=3)
    assert [deaths.died("t", 1000, "killed") for _ in range(3)] == [
        None,
        None,
        "its process died 3 times without a checkpoint after 1,000 tokens: killed",
    ]


def test_a_trial_that_saves_checkpoints_may_die_for_ever() -> None:
    deaths = TrialDeaths()
    assert all(deaths.died("t", step, "killed") is None for step in range(10 * DEATHS_WITHOUT_CHECKPOINT))
    assert deaths.total["t"] == 10 * DEATHS_WITHOUT_CHECKPOINT


def test_a_new_checkpoint_begins_the_count_anew() -> None:
    deaths = TrialDeaths(limit=2)
    assert deaths.died("t", 0, "killed") is None
    assert deaths.died("t", 64, "killed") is None
    assert deaths.died("t", 64, "killed") is not None


def test_a_checkpoint_that_is_lost_is_no_progress() -> None:
    """One that is damaged goes; it is not to be counted as a new one when it is made again."""
    deaths = TrialDeaths(limit=3)
    deaths.died("t", 128, "killed")
    assert deaths.died("t", 64, "killed") is None
    failure = deaths.died("t", 128, "killed")
    assert failure is not None and "after 128 tokens" in failure


def test_each_trial_has_its_own_count() -> None:
    deaths = TrialDeaths(limit=2)
    assert deaths.died("a", 0, "killed") is None and deaths.died("b", 0, "killed") is None
    assert deaths.total == {"a": 1, "b": 1}
