"""Losses and gradients of the standard and the gated SAE against the paper's equations, derived by hand in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsae_ray.saes import REGISTRY, SAE, SAEConfig

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float64]]]
CASES = settings(max_examples=60, deadline=None, database=None)
ARCHITECTURES = ("standard", "gated")


def make_sae(architecture: str, d_in: int, d_sae: int, arrays: Arrays | None = None) -> SAE:
    cfg = SAEConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, hyperparameters={"l1_coefficient": 1.0})
    sae = REGISTRY[architecture](cfg).double()
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name]) if arrays else torch.zeros_like(parameter))
    return sae


def random_case(architecture: str, batch: int, d_in: int, d_sae: int, seed: int, size: float) -> Arrays:
    """A batch "x" and parameters: decoder rows of unit norm, everything else free."""
    rng = np.random.RandomState(seed)
    arrays = {"x": size * rng.randn(batch, d_in), "W_enc": rng.randn(d_in, d_sae), "W_dec": rng.randn(d_sae, d_in)}
    arrays["W_dec"] /= np.linalg.norm(arrays["W_dec"], axis=1, keepdims=True)
    arrays["b_dec"] = size * rng.randn(d_in)
    biases = ("b_enc",) if architecture == "standard" else ("b_gate", "b_mag")
    arrays |= {name: size * rng.randn(d_sae) for name in biases}
    return arrays if architecture == "standard" else arrays | {"r_mag": rng.randn(d_sae)}


def reference_standard(p: Arrays, coefficient: float) -> tuple[dict[str, float], Arrays, Arrays]:
    """(losses, gradients, pre-activations): f = ReLU(W_enc (x − b_dec) + b_enc), L = E[‖x − x̂‖² + λ ‖f‖₁]."""
    x, batch = p["x"], len(p["x"])
    centred = x - p["b_dec"]
    pre = centred @ p["W_enc"] + p["b_enc"]
    f = np.maximum(pre, 0)
    error = f @ p["W_dec"] + p["b_dec"] - x
    losses = {"reconstruction": (error**2).sum() / batch, "sparsity": f.sum() / batch, "auxiliary": 0.0}
    losses["loss"] = losses["reconstruction"] + coefficient * losses["sparsity"]

    d_x_hat = 2 * error / batch
    d_pre = (d_x_hat @ p["W_dec"].T + coefficient / batch) * (pre > 0)
    gradients = {
        "W_enc": centred.T @ d_pre,
        "W_dec": f.T @ d_x_hat,
        "b_enc": d_pre.sum(0),
        "b_dec": d_x_hat.sum(0) - (d_pre @ p["W_enc"].T).sum(0),
    }
    return losses, gradients, {"acts": f, "pre": pre}


def reference_gated(p: Arrays, coefficient: float) -> tuple[dict[str, float], Arrays, Arrays]:
    """(losses, gradients, pre-activations) of the gated SAE, the decoder of the auxiliary term a constant."""
    x, batch, scale = p["x"], len(p["x"]), np.exp(p["r_mag"])
    centred = x - p["b_dec"]
    product = centred @ p["W_enc"]
    pi, pre_mag = product + p["b_gate"], product * scale + p["b_mag"]  # W_mag = diag(exp(r_mag)) W_gate
    gate = pi > 0
    f = gate * np.maximum(pre_mag, 0)
    error = f @ p["W_dec"] + p["b_dec"] - x
    relu_pi = np.maximum(pi, 0)
    frozen_error = relu_pi @ p["W_dec"] + p["b_dec"] - x
    losses = {
        "reconstruction": (error**2).sum() / batch,
        "sparsity": relu_pi.sum() / batch,
        "auxiliary": (frozen_error**2).sum() / batch,
    }
    losses["loss"] = losses["reconstruction"] + coefficient * losses["sparsity"] + losses["auxiliary"]

    d_x_hat = 2 * error / batch
    d_mag = (d_x_hat @ p["W_dec"].T) * gate * (pre_mag > 0)
    d_pi = (2 * frozen_error / batch @ p["W_dec"].T + coefficient / batch) * gate  # the frozen x̂ feeds nothing else
    d_product = d_mag * scale + d_pi
    gradients = {
        "W_enc": centred.T @ d_product,
        "W_dec": f.T @ d_x_hat,
        "b_gate": d_pi.sum(0),
        "b_mag": d_mag.sum(0),
        "r_mag": (d_mag * product * scale).sum(0),
        "b_dec": d_x_hat.sum(0) - (d_product @ p["W_enc"].T).sum(0),
    }
    return losses, gradients, {"acts": f, "pi": pi, "pre_mag": pre_mag}


REFERENCES = {"standard": reference_standard, "gated": reference_gated}


def assert_close(name: str, actual: torch.Tensor, expected: Any) -> None:
    expected = torch.as_tensor(np.asarray(expected))
    assert actual.shape == expected.shape, name
    assert (actual.double() - expected).abs().max() <= 1e-6 * expected.abs().max(), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@CASES
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 17)),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.03, 1.0, 30.0]),
    coefficient=st.floats(0, 20),
)
def test_losses_and_gradients_are_those_of_the_papers_equations(
    architecture: str, shape: tuple[int, int, int], seed: int, size: float, coefficient: float
) -> None:
    arrays = random_case(architecture, *shape, seed, size)
    losses, gradients, hidden = REFERENCES[architecture](arrays, coefficient)
    acts = hidden.pop("acts")
    assume(all(np.abs(pre).min() > 1e-9 for pre in hidden.values()))  # not within rounding of a threshold

    sae = make_sae(architecture, *shape[1:], arrays)
    x_BD = torch.from_numpy(arrays["x"])
    actual = sae.losses(x_BD, coefficient)
    actual.loss.backward()
    for name, expected in losses.items():
        assert_close(name, getattr(actual, name), expected)
    assert_close("acts_BF", actual.acts_BF, acts)
    assert_close("encode", sae.encode(x_BD).detach(), acts)
    assert_close("forward", sae(x_BD).detach(), acts @ arrays["W_dec"] + arrays["b_dec"])
    assert set(gradients) == {name for name, _ in sae.named_parameters()}
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert_close(name, parameter.grad, gradients[name])


# ---- stop-gradients, one by one -------------------------------------------------------------------------------------


def gradient(term: str, parameter: str, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor | None:
    """Of one term of the gated loss; None or zeros where none arrives."""
    value = getattr(sae.losses(x_BD, 1.0), term)
    return torch.autograd.grad(value, sae.get_parameter(parameter), allow_unused=True)[0]


def is_none_or_zero(tensor: torch.Tensor | None) -> bool:
    return tensor is None or not tensor.any()


@pytest.fixture
def gated() -> tuple[SAE, torch.Tensor, Arrays]:
    arrays = random_case("gated", 16, 6, 12, seed=0, size=1.0)
    return make_sae("gated", 6, 12, arrays), torch.from_numpy(arrays["x"]), arrays


@pytest.mark.parametrize(
    ("term", "parameter"),
    [
        ("auxiliary", "W_dec"),
        ("auxiliary", "r_mag"),
        ("auxiliary", "b_mag"),
        ("sparsity", "W_dec"),
        ("sparsity", "r_mag"),
        ("sparsity", "b_mag"),
        ("reconstruction", "b_gate"),
    ],
)
def test_no_gradient_goes_where_the_paper_sends_none(gated: Any, term: str, parameter: str) -> None:
    sae, x_BD, _ = gated
    assert is_none_or_zero(gradient(term, parameter, sae, x_BD))


@pytest.mark.parametrize(
    ("term", "parameter"),
    [
        *(("auxiliary", name) for name in ("W_enc", "b_gate", "b_dec")),
        *(("sparsity", name) for name in ("W_enc", "b_gate", "b_dec")),
        *(("reconstruction", name) for name in ("W_enc", "W_dec", "r_mag", "b_mag", "b_dec")),
    ],
)
def test_a_gradient_goes_where_the_paper_sends_one(gated: Any, term: str, parameter: str) -> None:
    sae, x_BD, _ = gated
    assert not is_none_or_zero(gradient(term, parameter, sae, x_BD))


def test_the_auxiliary_term_reaches_b_dec_through_the_encoder_only(gated: Any) -> None:
    sae, x_BD, p = gated
    relu_pi = np.maximum((p["x"] - p["b_dec"]) @ p["W_enc"] + p["b_gate"], 0)
    error = relu_pi @ p["W_dec"] + p["b_dec"] - p["x"]
    encode_side = -((2 * error / len(x_BD) @ p["W_dec"].T * (relu_pi > 0)) @ p["W_enc"].T).sum(0)
    actual = gradient("auxiliary", "b_dec", sae, x_BD)
    assert actual is not None
    assert_close("b_dec", actual, encode_side)


def test_the_auxiliary_term_gives_b_dec_nothing_when_every_gate_is_off(gated: Any) -> None:
    sae, x_BD, _ = gated
    with torch.no_grad():
        sae.get_parameter("b_gate").fill_(-1e3)
    assert not sae.encode(x_BD).any()
    assert is_none_or_zero(gradient("auxiliary", "b_dec", sae, x_BD))


# ---- conventions ----------------------------------------------------------------------------------------------------


def test_a_gate_at_exactly_zero_is_off() -> None:
    sae = make_sae("gated", 3, 4)
    with torch.no_grad():
        sae.get_parameter("b_mag").fill_(1.0)  # all magnitudes are 1 and every π_gate is 0
    x_BD = torch.randn(5, 3, dtype=torch.float64)
    assert not sae.encode(x_BD).any()
    with torch.no_grad():
        sae.get_parameter("b_gate").fill_(5e-324)  # the smallest number above 0
    assert sae.encode(x_BD).eq(1).all()


def test_losses_are_sums_over_coordinates_and_features() -> None:
    x_BD = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    standard = make_sae("standard", 2, 3)
    with torch.no_grad():
        standard.get_parameter("b_enc").copy_(torch.tensor([1.0, 2.0, -1.0]))
    losses = standard.losses(x_BD, 10.0)
    assert [part.item() for part in losses[:4]] == [25 + 10 * 3, 25, 3, 0]

    gated = make_sae("gated", 2, 3)
    with torch.no_grad():
        gated.get_parameter("b_gate").copy_(torch.tensor([1.0, 2.0, -1.0]))
        gated.get_parameter("b_mag").copy_(torch.tensor([5.0, 6.0, 7.0]))
    losses = gated.losses(x_BD, 10.0)
    assert [part.item() for part in losses[:4]] == [25 + 10 * 3 + 25, 25, 3, 25]  # L1 of ReLU(π_gate), not of f̃
    assert losses.acts_BF.tolist() == [[5, 6, 0]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_means_over_the_batch(architecture: str) -> None:
    arrays = random_case(architecture, 8, 5, 7, seed=1, size=1.0)
    sae, x_BD = make_sae(architecture, 5, 7, arrays), torch.from_numpy(arrays["x"])
    whole = torch.stack(sae.losses(x_BD, 2.0)[:4])
    rows = torch.stack([torch.stack(sae.losses(x_D[None], 2.0)[:4]) for x_D in x_BD])
    torch.testing.assert_close(whole, rows.mean(0))
    torch.testing.assert_close(whole, torch.stack(sae.losses(torch.cat([x_BD, x_BD]), 2.0)[:4]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_losses_are_on_the_device_of_the_batch(architecture: str) -> None:
    sae = REGISTRY[architecture](SAEConfig(architecture=architecture, d_in=3, d_sae=4)).to("meta")
    losses = sae.losses(torch.empty(2, 3, device="meta"), 1.0)
    assert {name: part.device.type for name, part in losses._asdict().items()} == dict.fromkeys(losses._fields, "meta")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reported_activations_carry_no_graph(architecture: str) -> None:
    arrays = random_case(architecture, 4, 3, 5, seed=2, size=1.0)
    losses = make_sae(architecture, 3, 5, arrays).losses(torch.from_numpy(arrays["x"]), 1.0)
    assert losses.loss.requires_grad
    assert not losses.acts_BF.requires_grad
