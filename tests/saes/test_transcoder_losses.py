"""Losses and gradients of transcoders: against equations derived by hand in numpy, and against those of SAEs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsae_ray.saes import SAE, Losses, Objective, SAEConfig, build

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float64]]]
CASES = settings(max_examples=40, deadline=None, database=None)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "gated-frozen": ("gated", {"auxiliary": "frozen"}),
    "gated-unfrozen": ("gated", {"auxiliary": "unfrozen"}),
    "gated-untied": ("gated", {"tied": False, "auxiliary": "none"}),
}
OTHERS: dict[str, dict[str, Any]] = {
    "topk": {"k": 3, "dead_after_tokens": 1},
    "batchtopk": {"k": 3, "dead_after_tokens": 1},
    "matryoshka_batchtopk": {"k": 3, "prefix_widths": [4, 12], "dead_after_tokens": 1},
    "jumprelu": {"l0_coefficient": 0.01, "bandwidth": 0.3},
    "p_anneal": {"l1_coefficient": 1.0},
    "standard": {"l1_coefficient": 1.0},
    "gated": {"l1_coefficient": 1.0},
}
every_architecture = pytest.mark.parametrize("architecture", OTHERS)
B, N, OUT, M = 9, 5, 7, 12


def make(
    architecture: str, hyperparameters: dict[str, Any], sizes: tuple[int, int, int], skip: bool, arrays: Arrays
) -> SAE:
    d_in, d_out, d_sae = sizes
    cfg = SAEConfig(
        architecture=architecture, d_in=d_in, d_out=d_out, d_sae=d_sae, skip=skip, hyperparameters=hyperparameters
    )
    sae = build(cfg).double().train()
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name]))
    return sae


def random_case(sizes: tuple[int, int, int], batch: int, seed: int, objective: Objective) -> Arrays:
    d_in, d_out, d_sae = sizes
    rng = np.random.RandomState(seed)
    W_dec = rng.randn(d_sae, d_out)
    if objective != "norm_weighted":
        W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    drawn: dict[str, tuple[int, ...]] = {
        "x": (batch, d_in),
        "y": (batch, d_out),
        "W_enc": (d_in, d_sae),
        "W_mag": (d_in, d_sae),
    }
    drawn |= {"b_dec": (d_out,), "W_skip": (d_out, d_in)} | dict.fromkeys(
        ("b_enc", "b_gate", "b_mag", "r_mag"), (d_sae,)
    )
    arrays = {name: rng.randn(*shape) for name, shape in drawn.items()}
    return {**arrays, "W_dec": W_dec, "threshold": np.abs(rng.randn(d_sae))}


def penalty(acts: Any, p: Arrays, objective: Objective) -> tuple[float, Any, Any]:
    """(value, its gradient with respect to acts, and to W_dec) of E[Σ f_i], or E[Σ f_i ‖d_i‖]."""
    batch = len(acts)
    if objective == "paper":
        return acts.sum() / batch, np.ones_like(acts) / batch, 0.0
    norms = np.linalg.norm(p["W_dec"], axis=1)
    return (acts * norms).sum() / batch, norms / batch, (acts.sum(0) / batch / norms)[:, None] * p["W_dec"]


def reference(variant: str, p: Arrays, skip: bool, coefficient: float, objective: Objective) -> tuple[Any, Any, Any]:
    """(losses, gradients, pre-activations).

    π = W_enc x + b_gate, m = W_mag x + b_mag, ŷ(f) = W_dec f + b_dec + W_skip x, and L = E[‖y − ŷ(1[π > 0] ReLU(m))‖²
    + λ penalty(ReLU(π)) + ‖y − ŷ(ReLU(π))‖²]; of a standard one π = m, without the last term.
    """
    architecture, options = VARIANTS[variant]
    x, y, batch = p["x"], p["y"], len(p["x"])
    gated, tied = architecture == "gated", options.get("tied", True)
    gate_bias, bias = ("b_gate", "b_mag") if gated else ("b_enc", "b_enc")
    scale = np.exp(p["r_mag"]) if gated and tied else 1.0
    W_mag = p["W_enc"] * scale if tied else p["W_mag"]
    pi, pre = x @ p["W_enc"] + p[gate_bias], x @ W_mag + p[bias]
    f, relu_pi = (pi > 0) * np.maximum(pre, 0), np.maximum(pi, 0)
    skipped = x @ p["W_skip"].T if skip else 0
    error = f @ p["W_dec"] + p["b_dec"] + skipped - y
    gate_error = relu_pi @ p["W_dec"] + p["b_dec"] + skipped - y
    auxiliary = options.get("auxiliary", "none")
    value, d_relu_pi, d_W_dec = penalty(relu_pi, p, objective)
    losses = {"reconstruction": (error**2).sum() / batch, "sparsity": value}
    losses["auxiliary"] = 0.0 if auxiliary == "none" else (gate_error**2).sum() / batch
    losses["loss"] = losses["reconstruction"] + coefficient * value + losses["auxiliary"]

    d_y_hat = 2 * error / batch
    d_gate_y_hat = 0 * error if auxiliary == "none" else 2 * gate_error / batch
    d_live = d_y_hat + d_gate_y_hat * (auxiliary == "unfrozen")
    d_pre = (d_y_hat @ p["W_dec"].T) * (pi > 0) * (pre > 0)
    d_pi = (d_gate_y_hat @ p["W_dec"].T + coefficient * d_relu_pi) * (pi > 0)
    gradients = {"b_dec": d_live.sum(0), "W_skip": d_live.T @ x}
    gradients["W_dec"] = f.T @ d_y_hat + coefficient * d_W_dec
    gradients["W_dec"] = gradients["W_dec"] + (relu_pi.T @ d_gate_y_hat) * (auxiliary == "unfrozen")
    gradients["W_enc"] = x.T @ (d_pi + d_pre * scale) if tied else x.T @ d_pi
    gradients |= {"W_mag": x.T @ d_pre, "r_mag": (d_pre * (x @ W_mag)).sum(0)}
    gradients |= {"b_gate": d_pi.sum(0), "b_mag": d_pre.sum(0), "b_enc": (d_pi + d_pre).sum(0)}
    return losses, gradients, (pi, pre)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
@CASES
@given(
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 17)),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    coefficient=st.floats(0, 20),
    skip=st.booleans(),
)
def test_losses_and_gradients_are_those_of_the_equations(
    variant: str,
    objective: Objective,
    sizes: tuple[int, int, int],
    batch: int,
    seed: int,
    coefficient: float,
    skip: bool,
) -> None:
    arrays = random_case(sizes, batch, seed, objective)
    losses, gradients, pre_activations = reference(variant, arrays, skip, coefficient, objective)
    assume(min(np.abs(pre).min() for pre in pre_activations) > 1e-9)
    architecture, options = VARIANTS[variant]
    sae = make(architecture, {"l1_coefficient": 1.0, **options}, sizes, skip, arrays)
    x_BD, y_BD = (torch.from_numpy(arrays[name]) for name in ("x", "y"))
    actual = sae.losses(x_BD, coefficient, objective, y_BD)
    actual.loss.backward()
    for name, expected in losses.items():
        assert getattr(actual, name).item() == pytest.approx(expected, rel=1e-9, abs=1e-12), name
    reconstruction = (y_BD - sae(x_BD)).square().sum().item() / batch
    assert reconstruction == pytest.approx(losses["reconstruction"], rel=1e-9), (
        "what it computes is what it is trained on"
    )
    assert ("W_skip" in dict(sae.named_parameters())) == skip
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        largest = np.abs(gradients[name]).max()
        np.testing.assert_allclose(parameter.grad.numpy(), gradients[name], atol=1e-9 * largest + 1e-300, rtol=0)


def graded(sae: SAE, x_BD: torch.Tensor, y_BD: torch.Tensor | None) -> tuple[Losses, dict[str, torch.Tensor]]:
    """The losses of a second batch, of which some features have been dead, and the gradient."""
    sae.prepare_training(1.0, steps=100, batch_size=len(x_BD))
    objective = type(sae).objectives[0]
    with torch.no_grad():
        sae.losses(x_BD[:2], 0.5, objective, None if y_BD is None else y_BD[:2])
    losses = sae.losses(x_BD, 0.5, objective, y_BD)
    losses.loss.backward()
    return losses, {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}


@every_architecture
def test_a_transcoder_to_its_own_input_learns_as_an_sae_whose_encoder_takes_x(architecture: str) -> None:
    arrays = random_case((N, N, M), B, 0, "paper")
    transcoder = make(architecture, OTHERS[architecture], (N, N, M), False, arrays)
    own = {**OTHERS[architecture], "subtract_b_dec": False}
    sae = build(SAEConfig(architecture=architecture, d_in=N, d_sae=M, hyperparameters=own)).double().train()
    sae.load_training_state({**sae.training_state(), **dict(transcoder.named_parameters())})
    x_BD = torch.from_numpy(arrays["x"])
    (losses, gradient), (of_sae, expected) = graded(transcoder, x_BD, x_BD), graded(sae, x_BD, None)
    for part, other in zip(losses, of_sae, strict=True):
        assert torch.equal(part, other)
    assert gradient.keys() == expected.keys()
    for name in gradient:
        torch.testing.assert_close(gradient[name], expected[name])
    if architecture in ("topk", "batchtopk", "matryoshka_batchtopk"):
        assert losses.auxiliary > 0


@every_architecture
def test_of_a_skip_connection_only_the_rest_is_left_to_features(architecture: str) -> None:
    """To learn y with W_skip is to learn y − W_skip x without, and W_skip's gradient is that of y, times −x."""
    arrays = random_case((N, OUT, M), B, 1, "paper")
    with_skip = make(architecture, OTHERS[architecture], (N, OUT, M), True, arrays)
    without = make(architecture, OTHERS[architecture], (N, OUT, M), False, arrays)
    x_BD, y_BD = (torch.from_numpy(arrays[name]) for name in ("x", "y"))
    rest_BD = (y_BD - x_BD @ torch.from_numpy(arrays["W_skip"]).T).requires_grad_()
    (losses, gradient), (plain, expected) = graded(with_skip, x_BD, y_BD), graded(without, x_BD, rest_BD)
    torch.testing.assert_close(losses.loss, plain.loss)
    assert rest_BD.grad is not None
    torch.testing.assert_close(gradient.pop("W_skip"), -rest_BD.grad.T @ x_BD)
    assert gradient.keys() == expected.keys()
    for name in gradient:
        torch.testing.assert_close(gradient[name], expected[name])
