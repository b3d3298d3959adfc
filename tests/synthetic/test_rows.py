"""Rows follow the model that `gsae_ray.synthetic.rows` states, and are a function of settings, seed and block."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_sweeps import settings

from gsae_ray.synthetic.rows import REVISION, RowGenerator, Rows

ROWS = 30_000
SIGMAS = 5


def drawn(generator: RowGenerator, rows: int = ROWS, block: int = 0, seed: int = 0) -> Rows:
    batches = list(generator.block(seed, block, rows))
    return Rows(torch.cat([batch.x_RD for batch in batches]), torch.cat([batch.active_RG for batch in batches]))


def of(**keys: Any) -> tuple[RowGenerator, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The generator; rows, and which features are active on them."""
    generator = RowGenerator(settings(**keys))
    x_RD, active_RG = drawn(generator)
    return generator, x_RD.numpy(), active_RG.numpy()


def is_probability(found: Any, expected: Any, trials: Any) -> bool:
    """Whether shares of independent trials are those of the probabilities, within some standard errors."""
    error = np.sqrt(expected * (1 - expected) / trials)
    return bool((np.abs(found - expected) <= SIGMAS * error + 1e-12).all())


CORRELATION = {"groups": 3, "frequency": 0.4, "strength": 0.7}
HIERARCHY = {"roots": 4, "branching": 3, "depth": 2, "frequency": 0.3}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"correlation": CORRELATION},
        {"hierarchy": HIERARCHY},
        {"hierarchy": {**HIERARCHY, "exclusive": True}, "correlation": CORRELATION, "noise": 0.3},
        {"active": 24, "max_frequency": 1.0, "zipf": 2},  # some features on every row
    ],
)
def test_every_feature_is_active_as_often_as_the_dictionary_says(keys: dict[str, Any]) -> None:
    generator, _, active_RG = of(**{"features": 80, "d_in": 16, "active": 5, **keys})
    assert is_probability(active_RG.mean(0), generator.features.frequency_G, ROWS)
    if "max_frequency" not in keys:
        assert active_RG.sum(1).mean() == pytest.approx(5, rel=0.03)


def test_features_are_independent_unless_something_else_is_said() -> None:
    generator, _, active_RG = of(features=12, d_in=8, active=3)
    p_G = generator.features.frequency_G
    for i, j in combinations(range(12), 2):
        assert is_probability((active_RG[:, i] & active_RG[:, j]).mean(), p_G[i] * p_G[j], ROWS)


def test_features_of_a_group_are_active_together_as_much_more_often_as_the_equations_say() -> None:
    generator, _, active_RG = of(features=12, d_in=8, active=2, correlation=CORRELATION)
    p_G = generator.features.frequency_G
    lift = 1 + 0.7**2 * (1 - 0.4) / 0.4
    for i, j in combinations(range(12), 2):
        together = (active_RG[:, i] & active_RG[:, j]).mean()
        assert is_probability(together, p_G[i] * p_G[j] * (lift if i % 3 == j % 3 else 1), ROWS)


def test_groups_of_full_strength_are_never_mixed_with_rows_on_which_they_are_off() -> None:
    """Of two groups that are each on half of the rows, a quarter of the rows has neither."""
    _, _, active_RG = of(
        features=80, d_in=8, active=24, zipf=0, correlation={"groups": 2, "frequency": 0.5, "strength": 1}
    )
    assert is_probability((active_RG.sum(1) == 0).mean(), np.float64(0.25), ROWS)


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_child_is_never_active_without_its_parent(exclusive: bool) -> None:
    generator, _, active_RG = of(features=80, d_in=16, active=5, hierarchy={**HIERARCHY, "exclusive": exclusive})
    parent_G = generator.features.parent_G
    children = np.flatnonzero(parent_G >= 0)
    assert len(children) == 4 * (3 + 9)
    for child in children:
        parent = active_RG[:, parent_G[child]]
        assert not (active_RG[:, child] & ~parent).any()
        assert is_probability(active_RG[parent, child].mean(), np.float64(0.3), parent.sum())
    siblings = [active_RG[:, parent_G == parent].sum(1).max() for parent in np.unique(parent_G[children])]
    assert max(siblings) == 1 if exclusive else max(siblings) > 1


@pytest.mark.parametrize(
    ("magnitudes", "low", "high", "deviation"),
    [
        ("constant", 1, 1, 0),
        ("uniform", 0.5, 1.5, 1 / np.sqrt(12)),
        ("lognormal", 0, 20, np.sqrt(np.exp(0.25) - 1)),
        ("exponential", 0, 20, 1),
    ],
)
def test_a_row_is_the_sum_of_the_directions_of_its_active_features(
    magnitudes: str, low: float, high: float, deviation: float
) -> None:
    generator, x_RD, active_RG = of(features=16, d_in=16, active=4, coherence=0, magnitudes=magnitudes)
    coefficient_RG = x_RD @ generator.features.directions_GD.T  # the directions are orthogonal
    assert (np.abs(coefficient_RG[~active_RG]) < 1e-5).all()
    a_N = coefficient_RG[active_RG]
    assert (a_N > 0).all() and a_N.min() >= low - 1e-5 and a_N.max() <= high + 1e-5
    assert abs(a_N.mean() - 1) <= SIGMAS * deviation / np.sqrt(len(a_N)) + 1e-5
    assert a_N.std() == pytest.approx(deviation, rel=0.05, abs=1e-5)


def test_noise_has_the_norm_that_is_said_in_every_direction() -> None:
    keys = {"features": 20, "d_in": 16, "active": 3, "magnitudes": "constant"}
    generator, x_RD, active_RG = of(**keys, noise=0.5)
    noise_RD = x_RD - active_RG @ generator.features.directions_GD
    assert np.square(noise_RD).sum(1).mean() == pytest.approx(0.25, rel=0.03)
    np.testing.assert_allclose(noise_RD.T @ noise_RD / ROWS, np.eye(16) * 0.25 / 16, atol=0.002)
    _, silent_RD, _ = of(**keys)
    assert not np.array_equal(silent_RD, x_RD)


# ---- purity ---------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {"features": 64, "d_in": 32, "active": 4, "noise": 0.1, "coherence": 0.3}
EVERYTHING |= {"correlation": CORRELATION, "hierarchy": HIERARCHY}


def same(one: Rows, other: Rows) -> bool:
    return torch.equal(one.x_RD, other.x_RD) and torch.equal(one.active_RG, other.active_RG)


def test_a_block_is_the_same_whatever_was_drawn_before_it_and_by_whom() -> None:
    one, other = (RowGenerator(settings(**EVERYTHING)) for _ in range(2))
    first = drawn(one, 9000, block=3)
    drawn(other, 5000, block=7)
    torch.set_num_threads(2)
    assert same(first, drawn(other, 9000, block=3))
    assert same(first, drawn(one, 9000, block=3))


def test_blocks_seeds_and_held_out_rows_have_nothing_in_common() -> None:
    generator, other = RowGenerator(settings(**EVERYTHING)), RowGenerator(settings(**EVERYTHING, seed=1))
    drawings = [drawn(generator, 500, block, seed).x_RD for block in (0, 1) for seed in (0, 1)]
    drawings += [next(generator.heldout(500)).x_RD, drawn(other, 500).x_RD, next(other.heldout(500)).x_RD]
    assert not any(torch.equal(one[0], another[0]) for one, another in combinations(drawings, 2))
    assert len(torch.unique(torch.cat(drawings), dim=0)) == 500 * len(drawings)


def test_rows_of_before_come_out_again() -> None:
    """What identifies rows has `REVISION` in it: whoever changes these numbers raises that."""
    assert REVISION == 1
    x_RD, active_RG = drawn(RowGenerator(settings(**{**EVERYTHING, "coherence": None})), 3000, block=2, seed=5)
    assert int((active_RG.sum(1) * torch.arange(3000)).sum()) == 18335071
    assert float(x_RD.double().abs().sum()) == pytest.approx(25270.291, rel=1e-5)
