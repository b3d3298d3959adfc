"""Gradient pursuit against the same algorithm written as a loop in numpy, and where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gsae_ray.evaluation import gradient_pursuit as pursuit
from gsae_ray.evaluation.gradient_pursuit import gradient_pursuit

WIDTH, FEATURES = 24, 96


def dictionary(seed: int = 0, correlated: float = 0.0) -> Tensor:
    """Unit rows; `correlated`: how much of each is one common direction."""
    generator = torch.Generator().manual_seed(seed)
    W_FD = torch.randn(FEATURES, WIDTH, generator=generator)
    W_FD += correlated * torch.randn(1, WIDTH, generator=generator)
    return W_FD / W_FD.norm(dim=1, keepdim=True)


def activations(W_FD: Tensor, rows: int = 40, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Rows near sparse combinations of features, and b_dec."""
    generator = torch.Generator().manual_seed(seed)
    acts_RF = torch.relu(torch.randn(rows, len(W_FD), generator=generator) - 1.5)
    b_dec_D = torch.randn(W_FD.shape[1], generator=generator)
    noise_RD = 0.3 * torch.randn(rows, W_FD.shape[1], generator=generator)
    return acts_RF @ W_FD + b_dec_D + noise_RD, b_dec_D


def loop(x: Any, D: Any, b: Any, l0: int) -> Any:
    """One row, one feature at a time, in float64."""
    f, r, selected = np.zeros(len(D)), x - b, []
    for _ in range(l0):
        products = D @ r
        candidates = [i for i in range(len(D)) if i not in selected and products[i] > 0]
        if candidates:
            selected.append(max(candidates, key=lambda i: products[i]))
        g = np.zeros(len(D))
        g[selected] = products[selected]
        if not g.any():
            continue
        alpha = r @ (g @ D) / np.sum((g @ D) ** 2)
        step = np.maximum(f + alpha * g, 0) - f
        if not step.any():
            continue
        f = f + min(1, r @ (step @ D) / np.sum((step @ D) ** 2)) * step
        r = x - b - f @ D
    return f


@pytest.mark.parametrize("correlated", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("l0", [1, 2, 7, 30])
def test_it_is_the_algorithm_written_as_a_loop(l0: int, correlated: float) -> None:
    W_FD = dictionary(correlated=correlated)
    x_RD, b_dec_D = activations(W_FD)
    D, b = W_FD.double().numpy(), b_dec_D.double().numpy()
    expected = np.array([loop(x, D, b, l0) for x in x_RD.double().numpy()])
    actual = gradient_pursuit(x_RD, W_FD, b_dec_D, l0).double().numpy()
    # Near ties a selection may fall the other way in float32, in single rows.
    agree = np.isclose(actual, expected, rtol=1e-3, atol=1e-3).all(1)
    assert agree.mean() >= 0.9
    left, right = (np.linalg.norm(x_RD.numpy() - f @ D - b, axis=1)[agree] for f in (actual, expected))
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**16), st.integers(1, 8))
def test_sparse_combinations_of_orthonormal_features_are_recovered_exactly(seed: int, sparsity: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    W_FD = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    acts_RF = torch.zeros(10, WIDTH)
    for row in acts_RF:
        row[torch.randperm(WIDTH, generator=generator)[:sparsity]] = 0.5 + torch.rand(sparsity, generator=generator)
    b_dec_D = torch.randn(WIDTH, generator=generator)
    found_RF = gradient_pursuit(acts_RF @ W_FD + b_dec_D, W_FD, b_dec_D, sparsity)
    torch.testing.assert_close(found_RF, acts_RF, atol=1e-4, rtol=0)


@pytest.mark.parametrize("correlated", [0.0, 1.0, 3.0])
def test_coefficients_are_not_negative_at_most_l0_and_each_feature_more_brings_the_row_nearer(
    correlated: float,
) -> None:
    W_FD = dictionary(seed=3, correlated=correlated)
    x_RD, b_dec_D = activations(W_FD)
    before_R = (x_RD - b_dec_D).norm(dim=1)
    for l0 in range(1, 60):
        f_RF = gradient_pursuit(x_RD, W_FD, b_dec_D, l0)
        assert f_RF.dtype == torch.float32 and bool((f_RF >= 0).all())
        assert int((f_RF > 0).sum(1).max()) <= l0
        left_R = (x_RD - f_RF @ W_FD - b_dec_D).norm(dim=1)
        assert bool((left_R <= before_R * (1 + 1e-5)).all())
        before_R = left_R


def test_a_clamped_step_that_would_overshoot_is_cut_short() -> None:
    """Twelve features in two dimensions: one step in 25 would take a row further away than it was."""
    generator = torch.Generator().manual_seed(4)
    W_FD = torch.randn(12, 2, generator=generator) + torch.randn(1, 2, generator=generator)
    W_FD /= W_FD.norm(dim=1, keepdim=True)
    x_RD = torch.randn(500, 2, generator=generator)
    before_R = x_RD.norm(dim=1)
    for l0 in range(1, 13):
        left_R = (x_RD - gradient_pursuit(x_RD, W_FD, torch.zeros(2), l0) @ W_FD).norm(dim=1)
        assert bool((left_R <= before_R + 1e-5).all())
        before_R = left_R


def test_what_no_feature_points_to_gets_none() -> None:
    W_FD = torch.eye(4)[:3]
    x_RD = torch.tensor([[-1.0, -2.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 3.0, -1.0, 0.0]])
    f_RF = gradient_pursuit(x_RD, W_FD, torch.zeros(4), 3)
    assert f_RF.tolist() == [[0, 0, 0], [0, 0, 0], [0, 3, 0]]


def test_features_of_other_norms_are_the_same_directions() -> None:
    """As SAEs from elsewhere may have them; one without a direction is never chosen."""
    W_FD = dictionary(seed=4)
    x_RD, b_dec_D = activations(W_FD)
    norms_F = 20 ** torch.linspace(-1, 1, FEATURES)
    expected_RF = gradient_pursuit(x_RD, W_FD, b_dec_D, 8)
    actual_RF = gradient_pursuit(x_RD, W_FD * norms_F[:, None], b_dec_D, 8)
    torch.testing.assert_close(actual_RF * norms_F, expected_RF, atol=1e-4, rtol=1e-4)
    W_FD[7] = 0
    without_RF = gradient_pursuit(x_RD, W_FD, b_dec_D, 8)
    assert expected_RF[:, 7].any() and not without_RF[:, 7].any() and without_RF.isfinite().all()


def test_every_feature_may_be_used() -> None:
    W_FD = torch.eye(5)
    x_RD = torch.arange(1.0, 11.0).reshape(2, 5)
    torch.testing.assert_close(gradient_pursuit(x_RD, W_FD, torch.zeros(5), 5), x_RD)


def test_slices_bound_the_memory_and_change_no_more_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    W_FD = dictionary(seed=5)
    x_RD, b_dec_D = activations(W_FD)
    whole_RF = gradient_pursuit(x_RD, W_FD, b_dec_D, 8)
    assert torch.equal(gradient_pursuit(x_RD, W_FD, b_dec_D, 8), whole_RF)
    monkeypatch.setattr(pursuit, "SLICE_BYTES", 5000)
    torch.testing.assert_close(gradient_pursuit(x_RD, W_FD, b_dec_D, 8), whole_RF, atol=1e-4, rtol=1e-4)
    assert gradient_pursuit(x_RD[:0], W_FD, b_dec_D, 8).shape == (0, FEATURES)
