"""Grids of a sweep file: lists, and ranges that are spelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_texts import CASES, expand

from gsae_ray.config.load import load_sweep
from gsae_ray.fields import expand_grid


@pytest.mark.parametrize("value", [3, 0.5, "x", None, True])
def test_a_scalar_is_a_grid_of_one(value: object) -> None:
    assert expand_grid(value) == (value,)


def test_a_list_stands_for_itself() -> None:
    assert expand_grid([3, 1, 2]) == (3, 1, 2)


def test_log_range_is_evenly_spaced_between_its_ends() -> None:
    assert expand_grid({"log_range": [1, 16], "n": 5}) == (1.0, 2.0, 4.0, 8.0, 16.0)
    assert expand_grid({"log_range": [1e-5, 1e-3], "n": 3}) == (1e-5, 1e-4, 1e-3)
    assert expand_grid({"log_range": [3, 3], "n": 1}) == (3.0,)


def test_log_uniform_is_decided_by_its_seed() -> None:
    grid = {"log_uniform": [1, 16], "n": 4, "seed": 3}
    assert expand_grid(grid) == expand_grid(grid) == (2.24019, 4.1219, 4.60497, 7.12352)
    assert expand_grid({"log_uniform": [1, 16], "n": 4, "seed": 4}) != expand_grid(grid)
    assert expand_grid({"log_uniform": [1, 16], "n": 4}) == expand_grid({"log_uniform": [1, 16], "n": 4, "seed": 0})


@CASES
@given(
    form=st.sampled_from(["log_range", "log_uniform"]),
    low=st.floats(1e-6, 1e3),
    ratio=st.floats(1, 1e4),
    n=st.integers(1, 12),
)
def test_spelled_grids_are_sorted_within_their_bounds_and_short(form: str, low: float, ratio: float, n: int) -> None:
    values: Any = expand_grid({form: [low, low * ratio], "n": n})
    assert len(values) == n
    assert list(values) == sorted(values)
    assert all(low * (1 - 1e-5) <= value <= low * ratio * (1 + 1e-5) for value in values)
    assert all(float(f"{value:.6g}") == value for value in values)


def test_grids_may_be_spelled_in_a_sweep_file(path: Path) -> None:
    sweep = load_sweep(
        path,
        [
            "saes.0.l1_coefficient={log_range: [1, 4], n: 3}",
            "saes.0.widths={log_range: [16, 64], n: 3}",
            "training.lr={log_uniform: [1e-4, 1e-3], n: 2, seed: 1}",
        ],
    )
    gated = [trial for trial in expand(sweep) if trial.architecture == "gated"]
    assert [t.hyperparameters["l1_coefficient"] for t in gated[:6]] == [1, 1, 2, 2, 4, 4]
    assert {t.d_sae for t in gated} == {16, 32, 64}
    assert all(type(t.d_sae) is int for t in gated)
    assert len({t.training.lr for t in gated}) == 2
