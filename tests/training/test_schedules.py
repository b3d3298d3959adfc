"""Schedules: their ends, their shape, and that they depend on nothing but the step."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsae_ray.training.schedules import lr_factor, sparsity_factor

CASES = settings(max_examples=200, deadline=None, database=None)
STEPS = st.integers(1, 5000)
FRACTION = st.floats(0, 1)


def lr_run(steps: int, warmup: float, decay: float) -> list[float]:
    return [lr_factor(step, steps, warmup, decay) for step in range(steps + 1)]


def test_the_lr_starts_at_a_tenth_peaks_at_one_and_ends_at_zero() -> None:
    factors = lr_run(1000, 0.1, 0.2)
    assert factors[0] == pytest.approx(0.1)
    assert factors[50] == pytest.approx(0.55)  # half-way up a cosine
    assert factors[25] == pytest.approx(0.1 + 0.9 * (1 - math.cos(math.pi / 4)) / 2)
    assert set(factors[100:801]) == {1.0}
    assert factors[900] == pytest.approx(0.5)  # half-way down a line
    assert factors[999] == pytest.approx(1 / 200)
    assert factors[1000] == 0


def test_without_warmup_and_decay_the_lr_is_constant() -> None:
    assert set(lr_run(100, 0, 0)) == {1.0}


@CASES
@given(steps=st.integers(1, 500), warmup=FRACTION, share=FRACTION)
def test_the_lr_rises_then_rests_then_falls(steps: int, warmup: float, share: float) -> None:
    decay = share * (1 - warmup)
    factors = lr_run(steps, warmup, decay)
    peak = factors.index(max(factors))
    rising, falling = factors[: peak + 1], factors[peak:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(0 < factor <= 1 for factor in factors[:-1])


@CASES
@given(steps=STEPS, step=st.integers(0, 5000), warmup=FRACTION, share=FRACTION)
def test_the_lr_is_one_between_warmup_and_decay(steps: int, step: int, warmup: float, share: float) -> None:
    decay = share * (1 - warmup)
    step = min(step, steps)
    factor = lr_factor(step, steps, warmup, decay)
    start, end = warmup * steps, steps - decay * steps
    assume(all(abs(step - edge) > 1e-3 for edge in (start, end)))  # not within rounding of an edge
    assert (factor == 1) if start < step < end else (factor < 1)


def test_the_sparsity_coefficient_rises_linearly_from_its_first_share_and_stays() -> None:
    factors = [sparsity_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert set(factors[10:]) == {1.0}


@CASES
@given(steps=st.integers(1, 500), warmup=FRACTION)
def test_the_sparsity_coefficient_never_falls_and_ends_whole(steps: int, warmup: float) -> None:
    factors = [sparsity_factor(step, steps, warmup) for step in range(steps)]
    assert factors == sorted(factors)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[-1] == pytest.approx(1)
    assert factors[0] == pytest.approx(min(1, 1 / (warmup * steps)) if warmup * steps > 1e-300 else 1)


def test_without_warmup_the_sparsity_coefficient_is_constant() -> None:
    assert {sparsity_factor(step, 10, 0) for step in range(10)} == {1.0}
