"""The true features are what the sweep file says: how often they are active, their parents, and how near they are."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_sweeps import settings

from gsae_ray.errors import UserError
from gsae_ray.synthetic.dictionary import dictionary, directions

REGIMES = [
    {},
    {"features": 40, "active": 3.5, "zipf": 0},
    {"features": 500, "active": 20, "zipf": 0.7, "max_frequency": 0.1},
    {"features": 100, "active": 30},  # all at the maximum
    {"features": 100, "active": 12, "hierarchy": {"roots": 5, "branching": 3, "depth": 2, "frequency": 0.4}},
    {"features": 12, "active": 1, "hierarchy": {"roots": 2, "branching": 5}},  # nothing but trees
]


@pytest.mark.parametrize("regime", REGIMES)
def test_frequencies_sum_to_the_true_l0_and_fall_by_rank_below_the_maximum(regime: dict[str, object]) -> None:
    given = settings(**regime)
    found = dictionary(given)
    assert found.frequency_G.sum() == pytest.approx(given.active, rel=1e-12)
    p_N = found.frequency_G[: given.without_parent]
    assert (p_N <= given.max_frequency * (1 + 1e-12)).all() and (p_N > 0).all()
    below = np.flatnonzero(p_N < given.max_frequency * (1 - 1e-12)) + 1  # ranks
    scale_N = p_N[below - 1] * below**given.zipf
    np.testing.assert_allclose(scale_N, np.full(len(below), scale_N[0] if len(below) else 0))


def test_children_come_after_their_parents_and_are_as_often_active_as_said() -> None:
    given = settings(features=60, active=4, hierarchy={"roots": 3, "branching": 2, "depth": 2, "frequency": 0.3})
    found = dictionary(given)
    first = 60 - 3 * (2 + 4)
    assert found.parent_G[:first].tolist() == [-1] * first
    assert found.parent_G[first : first + 6].tolist() == [0, 0, 1, 1, 2, 2]
    assert found.parent_G[first + 6 :].tolist() == [first + i // 2 for i in range(12)]
    has = found.parent_G >= 0
    np.testing.assert_allclose(found.frequency_G[has], 0.3 * found.frequency_G[found.parent_G[has]])


def cosines(**keys: object) -> np.ndarray:
    d_GD = directions(settings(**keys)).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(d_GD, axis=1), 1, rtol=1e-6)
    cosine_GG = np.abs(d_GD @ d_GD.T)
    np.fill_diagonal(cosine_GG, 0)
    return cosine_GG


def test_directions_are_random_unit_vectors_of_the_seed() -> None:
    one, same, other = (directions(settings(seed=seed)) for seed in (0, 0, 1))
    assert (one == same).all() and not (one == other).any()
    assert cosines().mean() == pytest.approx(np.sqrt(2 / (np.pi * 64)), rel=0.02)


def test_directions_are_no_nearer_to_each_other_than_asked_for() -> None:
    assert cosines(features=48, d_in=24).max() > 0.5
    assert cosines(features=48, d_in=24, coherence=0.3).max() <= 0.3 + 1e-6
    assert cosines(features=30, d_in=64, coherence=0).max() < 1e-6
    assert cosines(features=64, d_in=64, coherence=0.001).max() < 1e-6, "where all can be orthogonal none is refused"
    assert cosines(features=30, d_in=64, coherence=0.9).max() == cosines(features=30, d_in=64).max(), "as far as that"


def test_directions_that_cannot_be_had_are_refused_in_a_line_that_says_what_can() -> None:
    match = r"^model.coherence: 0.16 was not reached: .* the search came to 0\.\d+ .* bound is 0.146"
    with pytest.raises(UserError, match=match):
        dictionary(settings(features=48, d_in=24, coherence=0.16))
