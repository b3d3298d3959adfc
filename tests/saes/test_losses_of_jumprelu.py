"""Losses and gradients of JumpReLU and p-annealed SAEs against their equations, derived by hand in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsae_ray.saes import SAE, PAnnealSAE, SAEConfig, build

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float64]]]
CASES = settings(max_examples=60, deadline=None, database=None)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 17))
EPSILON = 0.5
"""Bandwidth, in units of √E‖x‖²; wide, so that it is met."""


def random_case(batch: int, d_in: int, d_sae: int, seed: int, size: float) -> Arrays:
    rng = np.random.RandomState(seed)
    W_dec = rng.randn(d_sae, d_in)
    arrays = {"x": size * rng.randn(batch, d_in), "W_enc": rng.randn(d_in, d_sae), "b_dec": size * rng.randn(d_in)}
    arrays |= {"W_dec": W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True), "b_enc": size * rng.randn(d_sae)}
    return arrays | {"threshold": size * rng.rand(d_sae)}


def make(architecture: str, p: Arrays, hyperparameters: dict[str, Any], rms_norm: float, steps: int = 100) -> SAE:
    d_sae, d_in = p["W_dec"].shape
    sae = build(SAEConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, hyperparameters=hyperparameters)).double()
    sae.prepare_training(rms_norm, steps=steps, batch_size=len(p["x"]))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.from_numpy(p[name]))
    return sae


def check(sae: SAE, p: Arrays, coefficient: float, losses: dict[str, Any], gradients: Arrays, f: Any) -> None:
    found = sae.losses(torch.from_numpy(p["x"]), coefficient, "unit_norm")
    found.loss.backward()
    np.testing.assert_allclose(found.acts_BF.numpy(), f, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sae.encode(torch.from_numpy(p["x"])).detach().numpy(), f, rtol=1e-9, atol=1e-12)
    for name, value in losses.items():
        np.testing.assert_allclose(getattr(found, name).item(), value, rtol=1e-9, err_msg=name)
    assert set(gradients) == {name for name, _ in sae.named_parameters()}
    for name, expected in gradients.items():
        gradient = sae.get_parameter(name).grad
        assert gradient is not None
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("target", [None, 3.0])
@CASES
@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1), size=st.sampled_from([0.03, 1.0, 30.0]), share=st.floats(0, 2))
def test_a_jumprelu_sae_learns_thresholds_with_the_papers_kernels(
    target: float | None, shape: tuple[int, int, int], seed: int, size: float, share: float
) -> None:
    p = random_case(*shape, seed, size)
    batch, x, theta = len(p["x"]), p["x"], p["threshold"]
    bandwidth, coefficient = EPSILON * size, share * size**2
    z = np.maximum((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)
    edges = np.abs(np.abs(z - theta) - bandwidth / 2)
    assume(np.abs(z - theta).min() > 1e-9 * size and edges.min() > 1e-9 * size)  # not within rounding of a jump
    on, kernel = z > theta, (np.abs(z - theta) < bandwidth / 2) / bandwidth
    f = z * on
    error = f @ p["W_dec"] + p["b_dec"] - x
    l0 = on.sum() / batch
    penalty, d_l0 = (l0, 1.0) if target is None else ((l0 / target - 1) ** 2, 2 * (l0 / target - 1) / target)
    losses = {"reconstruction": (error**2).sum() / batch, "sparsity": penalty, "auxiliary": 0.0}
    losses["loss"] = losses["reconstruction"] + coefficient * penalty

    d_x_hat = 2 * error / batch
    d_f = d_x_hat @ p["W_dec"].T
    d_pre = d_f * on * (z > 0)  # nothing of the penalty
    gradients = {
        "W_enc": (x - p["b_dec"]).T @ d_pre,
        "b_enc": d_pre.sum(0),
        "W_dec": f.T @ d_x_hat,
        "b_dec": d_x_hat.sum(0) - (d_pre @ p["W_enc"].T).sum(0),
        "threshold": -(d_f * theta * kernel).sum(0) - coefficient * d_l0 * kernel.sum(0) / batch,
    }
    hyperparameters = {"l0_coefficient": 1.0, "bandwidth": EPSILON, "penalty": "quadratic" if target else "l0"}
    sae = make("jumprelu", p, {**hyperparameters, "quadratic_l0": target}, rms_norm=size)
    check(sae, p, coefficient, losses, gradients, f)


def test_a_threshold_starts_at_its_share_of_the_norm_and_never_falls_below_0() -> None:
    p = random_case(4, 6, 10, seed=0, size=1.0)
    sae = make("jumprelu", p, {"l0_coefficient": 1.0, "initial_threshold": 0.02}, rms_norm=5.0)
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(6), "unit_norm")
    threshold_F = sae.get_parameter("threshold")
    assert threshold_F.tolist() == pytest.approx([0.1] * 10)
    with torch.no_grad():
        threshold_F[3] = -0.5
    sae.constrain()
    assert threshold_F[3] == 0 and threshold_F[4] > 0
    sae.replace_features(torch.tensor([3]), torch.eye(6)[:1].double(), torch.ones(10, dtype=torch.bool), "unit_norm")
    assert threshold_F[3].item() == pytest.approx(0.1)
    assert torch.equal(sae.W_dec[3], torch.eye(6)[0].double())


@CASES
@given(
    shape=SHAPES,
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.03, 1.0, 30.0]),
    coefficient=st.floats(0, 20),
    step=st.integers(0, 99),
)
def test_a_p_annealed_sae_has_the_penalty_of_its_step(
    shape: tuple[int, int, int], seed: int, size: float, coefficient: float, step: int
) -> None:
    p = random_case(*shape, seed, size)
    hyperparameters = {"l1_coefficient": 1.0, "p_end": 0.2, "anneal_start": 0.5}
    sae = make("p_anneal", p, hyperparameters, rms_norm=size).eval()  # so that λ_t stays
    sae.begin_step(step)
    sae.get_buffer("strength").fill_(3.0)
    exponent = 1.0 if step < 50 else 1 - 0.08 * (1 + (step - 50) // 5)  # ten falls, five steps each
    batch, x, smallest = len(p["x"]), p["x"], 1e-8 * size
    pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    assume(np.abs(pre).min() > 1e-9 * size)
    f, on = np.maximum(pre, 0), pre > 0
    error = f @ p["W_dec"] + p["b_dec"] - x
    raised = np.where(on, f + smallest, 1)
    penalty = 3 * (raised**exponent * on).sum() / batch
    losses = {"reconstruction": (error**2).sum() / batch, "sparsity": penalty, "auxiliary": 0.0}
    losses["loss"] = losses["reconstruction"] + coefficient * penalty
    d_x_hat = 2 * error / batch
    d_pre = (d_x_hat @ p["W_dec"].T + coefficient * 3 * exponent * raised ** (exponent - 1) / batch) * on
    gradients = {
        "W_enc": (x - p["b_dec"]).T @ d_pre,
        "b_enc": d_pre.sum(0),
        "W_dec": f.T @ d_x_hat,
        "b_dec": d_x_hat.sum(0) - (d_pre @ p["W_enc"].T).sum(0),
    }
    check(sae, p, coefficient, losses, gradients, f)


def test_a_falling_p_leaves_the_penalty_as_large_as_it_was() -> None:
    p = random_case(200, 6, 10, seed=0, size=2.0)
    sae = make("p_anneal", p, {"l1_coefficient": 1.0}, rms_norm=2.0, steps=50)
    assert isinstance(sae, PAnnealSAE)
    x_BD = torch.from_numpy(p["x"])
    penalties = []
    for step in range(50):
        sae.begin_step(step)
        penalties.append(sae.losses(x_BD, 1.0, "unit_norm").sparsity.item())
    assert penalties == pytest.approx([penalties[0]] * 50), "the same batch and weights all the time"
    assert [sae.updates(step) for step in (9, 10, 13, 14, 46, 49)] == [0, 1, 1, 2, 10, 10]
    assert sae.exponent(0) == 1 and sae.exponent(10) == pytest.approx(0.2)
    assert sae.get_buffer("strength") != 1


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_p_falls_at_most_once_a_step_in_the_shortest_runs(steps: int) -> None:
    p = random_case(5, 6, 10, seed=0, size=1.0)
    sae = make("p_anneal", p, {"l1_coefficient": 1.0}, rms_norm=1.0, steps=steps)
    assert isinstance(sae, PAnnealSAE)
    falls = np.diff([sae.updates(step) for step in range(-1, steps)])
    assert falls.max() <= 1
    x_BD = torch.from_numpy(p["x"])
    for step in range(steps):
        sae.begin_step(step)
        assert sae.losses(x_BD, 1.0, "unit_norm").loss.isfinite()
