"""Which features two SAEs share, on decoders whose cosines are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gsae_ray.features import matching
from gsae_ray.features.matching import Matches, matches, survival

A = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [5.0, 5.0]])
B = torch.tensor([[0.0, 7.0], [-1.0, 0.0], [4.0, 3.0]])


@pytest.mark.parametrize("block", [2**24, 3])  # all at once; a row at a time
def test_the_nearest_features_of_two_saes_are_found_in_both_directions(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "BLOCK_NUMBERS", block)
    first, second = matches(A, B, np.array([True, True, True, False]), np.ones(3, bool))
    assert first.feature.tolist() == [2, 0, 2, -1], "a feature that never fires has no match"
    assert first.cosine == pytest.approx([0.8, 1.0, 7 / 50**0.5, 0.0])
    assert second.feature.tolist() == [1, 1, 2], "and is none"
    assert second.cosine == pytest.approx([1.0, 0.0, 7 / 50**0.5])


def test_without_features_that_fire_there_are_no_matches() -> None:
    first, second = matches(A, B, np.zeros(4, bool), np.ones(3, bool))
    assert first.feature.tolist() == [-1] * 4 and second.feature.tolist() == [-1] * 3
    assert survival(first) is None


def test_survival_is_the_mean_with_an_interval_over_features() -> None:
    cosines = np.array([0.2, 0.4, 0.9, 0.0], np.float32)
    found = survival(Matches(np.array([5, 1, 2, -1]), cosines))
    assert found is not None and found.mean == pytest.approx(0.5)
    assert 0.2 <= found.low < 0.4 and 0.6 < found.high <= 0.9
    many = np.random.default_rng(0).uniform(0, 1, 10_000).astype(np.float32)
    wide = survival(Matches(np.arange(10_000), many))
    assert wide is not None and wide.high - wide.low == pytest.approx(2 * 1.96 * many.std() / 100, rel=0.1)
