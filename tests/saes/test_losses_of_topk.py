"""Losses and gradients of TopK, BatchTopK and Matryoshka SAEs against their equations, derived by hand in numpy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsae_ray.saes import SAE, SAEConfig, build

Arrays = dict[str, np.ndarray[Any, Any]]
ALPHA = 0.25
DEAD_AFTER = 100
KINDS = ("topk", "batchtopk", "matryoshka_batchtopk")


def random_case(batch: int, d_in: int, d_sae: int, seed: int, size: float) -> Arrays:
    """A batch "x", parameters with unit decoder rows, and for how many rows each feature has been silent."""
    rng = np.random.RandomState(seed)
    W_dec = rng.randn(d_sae, d_in)
    arrays = {"x": size * rng.randn(batch, d_in), "W_enc": rng.randn(d_in, d_sae), "b_dec": size * rng.randn(d_in)}
    arrays |= {"W_dec": W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True), "b_enc": size * rng.randn(d_sae)}
    return arrays | {"silent_rows_F": rng.randint(0, 2 * DEAD_AFTER, d_sae)}


def make(kind: str, p: Arrays, k: int, k_aux: int, widths: list[int] | None = None) -> SAE:
    hyperparameters: dict[str, Any] = {
        "k": k,
        "auxiliary_coefficient": ALPHA,
        "auxiliary_k": k_aux,
        "dead_after_tokens": DEAD_AFTER,
    }
    hyperparameters |= {"prefix_widths": widths} if widths else {}
    d_sae, d_in = p["W_dec"].shape
    sae = build(SAEConfig(architecture=kind, d_in=d_in, d_sae=d_sae, hyperparameters=hyperparameters)).double()
    sae.prepare_training(1.0, steps=100, batch_size=len(p["x"]))
    sae.load_training_state({name: torch.from_numpy(p[name]) if name in p else t for name, t in state(sae).items()})
    return sae


def state(sae: SAE) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in sae.training_state().items()}


def of_largest(acts: Any, k: int) -> Any:
    """1 where an activation is among the k largest of its row."""
    order = np.argsort(-acts, axis=1, kind="stable")[:, :k]
    mask = np.zeros_like(acts)
    np.put_along_axis(mask, order, 1, axis=1)
    return mask


def reference(kind: str, p: Arrays, k: int, k_aux: int, widths: list[int]) -> tuple[dict[str, Any], Arrays, Any]:
    """(losses, gradients, activations)."""
    batch = len(p["x"])
    centred = p["x"] - p["b_dec"]
    relu = np.maximum(centred @ p["W_enc"] + p["b_enc"], 0)
    kept = of_largest(relu, k) if kind == "topk" else of_largest(relu.reshape(1, -1), k * batch).reshape(relu.shape)
    f = relu * kept
    prefixes = widths if kind.startswith("matryoshka") else [relu.shape[1]]
    errors = [p["x"] - p["b_dec"] - f[:, :m] @ p["W_dec"][:m] for m in prefixes]
    losses = {"reconstruction": (errors[-1] ** 2).sum() / batch, "sparsity": 0.0}
    further = sum((error**2).sum() / batch for error in errors[:-1])

    d_f, d_W_dec, d_b_dec = np.zeros_like(f), np.zeros_like(p["W_dec"]), np.zeros_like(p["b_dec"])
    for m, error in zip(prefixes, errors, strict=True):
        d_x_hat = -2 * error / batch
        d_f[:, :m] += d_x_hat @ p["W_dec"][:m].T
        d_W_dec[:m] += f[:, :m].T @ d_x_hat
        d_b_dec += d_x_hat.sum(0)
    d_relu = d_f * kept

    dead = p["silent_rows_F"] >= DEAD_AFTER
    if dead.any():
        part = relu[:, dead]
        part_kept = of_largest(part, min(k_aux, int(dead.sum())))
        residual = errors[-1] - (part * part_kept) @ p["W_dec"][dead]
        further += ALPHA * (residual**2).sum() / batch
        d_e_hat = -2 * ALPHA * residual / batch  # nothing through e itself
        d_W_dec[dead] += (part * part_kept).T @ d_e_hat
        d_relu[:, dead] += (d_e_hat @ p["W_dec"][dead].T) * part_kept
    losses |= {"auxiliary": further, "loss": losses["reconstruction"] + further}
    d_pre = d_relu * (relu > 0)
    gradients = {"W_enc": centred.T @ d_pre, "b_enc": d_pre.sum(0), "W_dec": d_W_dec}
    gradients["b_dec"] = d_b_dec - (d_pre @ p["W_enc"].T).sum(0)
    return losses, gradients, f


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, database=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(4, 17)),
    k=st.integers(1, 4),
    k_aux=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.03, 1.0, 30.0]),
)
def test_losses_and_gradients_are_those_of_the_equations(
    kind: str, shape: tuple[int, int, int], k: int, k_aux: int, seed: int, size: float
) -> None:
    p = random_case(*shape, seed, size)
    widths = sorted({1, shape[2] // 2, shape[2]})
    losses, gradients, f = reference(kind, p, k, k_aux, widths)
    sae = make(kind, p, k, k_aux, widths if kind.startswith("matryoshka") else None)
    found = sae.losses(torch.from_numpy(p["x"]), 1.0, "unit_norm")
    found.loss.backward()
    np.testing.assert_allclose(found.acts_BF.numpy(), f, rtol=1e-9, atol=1e-12)
    for name, value in losses.items():
        np.testing.assert_allclose(getattr(found, name).item(), value, rtol=1e-9, err_msg=name)
    for name, expected in gradients.items():
        gradient = sae.get_parameter(name).grad
        assert gradient is not None
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_silent_features_are_counted_in_rows(kind: str) -> None:
    p = random_case(7, 6, 12, seed=3, size=1.0)
    sae = make(kind, p, k=2, k_aux=3)
    fired_F = (sae.losses(torch.from_numpy(p["x"]), 0.0, "unit_norm").acts_BF > 0).any(0)
    assert fired_F.any() and not fired_F.all()
    expected = torch.where(fired_F, 0, torch.from_numpy(p["silent_rows_F"]) + 7)
    assert torch.equal(sae.get_buffer("silent_rows_F"), expected)
    before = state(sae)
    sae.eval().losses(torch.from_numpy(p["x"]), 0.0, "unit_norm")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(sae).items()), "only training changes it"


def test_a_row_of_a_topk_sae_has_at_most_k_and_a_batch_of_a_batchtopk_sae_k_on_the_mean() -> None:
    p = random_case(64, 8, 32, seed=5, size=1.0)
    x_BD = torch.from_numpy(p["x"])
    rows_B = (make("topk", p, 3, 1).losses(x_BD, 0.0, "unit_norm").acts_BF > 0).sum(1)
    assert rows_B.max() == 3
    rows_B = (make("batchtopk", p, 3, 1).losses(x_BD, 0.0, "unit_norm").acts_BF > 0).sum(1)
    assert rows_B.sum() == 3 * 64 and rows_B.max() > 3 > rows_B.min()


def test_prefixes_are_those_of_the_file_and_by_default_halves() -> None:
    p = random_case(5, 6, 40, seed=1, size=1.0)
    assert make("matryoshka_batchtopk", p, 2, 1).cfg.hyperparameters["prefix_widths"] == [2, 5, 10, 20, 40]
    sae = make("matryoshka_batchtopk", p, 2, 1, [8, 40])
    assert sae.cfg.hyperparameters["prefix_widths"] == [8, 40]
    acts_BF = sae.losses(torch.from_numpy(p["x"]), 0.0, "unit_norm").acts_BF
    by_prefix = [(p["x"] - p["b_dec"] - acts_BF.numpy()[:, :m] @ p["W_dec"][:m]) for m in (8, 40)]
    assert all(a.shape == b.shape for a, b in itertools.pairwise(by_prefix))
    found = sae.eval().losses(torch.from_numpy(p["x"]), 0.0, "unit_norm")
    assert found.reconstruction.item() == pytest.approx((by_prefix[1] ** 2).sum() / 5)
