"""Losses and gradients of every architecture, variant and objective against the equations, derived by hand in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsae_ray.saes import REGISTRY, SAE, Objective, SAEConfig
from gsae_ray.training.engines.sparse_cpu import SparseCPUEngine

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float64]]]
Hidden = dict[str, Any]
CASES = settings(max_examples=60, deadline=None, database=None)
ARCHITECTURES = ("standard", "gated")
OBJECTIVES: tuple[Objective, ...] = ("paper", "norm_weighted")
VARIANTS: dict[str, tuple[str, Hidden]] = {
    "standard": ("standard", {}),
    "gated": ("gated", {}),
    "untied": ("gated", {"tied": False}),
    "r_mag-0": ("gated", {"learn_r_mag": False}),
    "frozen": ("gated", {"auxiliary": "frozen"}),
    "unfrozen": ("gated", {"auxiliary": "unfrozen"}),
    "no-auxiliary": ("gated", {"auxiliary": "none"}),
    "untied-unfrozen": ("gated", {"tied": False, "auxiliary": "unfrozen"}),
    "rescale_shift": ("rescale_shift", {}),
}
variants = pytest.mark.parametrize("variant", VARIANTS)
objectives = pytest.mark.parametrize("objective", OBJECTIVES)


def make_sae(variant: str, d_in: int, d_sae: int, arrays: Arrays | None = None) -> SAE:
    architecture, options = VARIANTS[variant]
    hyperparameters = {"l1_coefficient": 1.0, **options}
    cfg = SAEConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, hyperparameters=hyperparameters)
    sae = REGISTRY[architecture](cfg).double()
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name]) if arrays else torch.zeros_like(parameter))
    return sae


def random_case(
    variant: str, batch: int, d_in: int, d_sae: int, seed: int, size: float, objective: Objective = "paper"
) -> Arrays:
    """A batch "x" and parameters: decoder rows of unit norm, or free with norm_weighted; everything else free."""
    rng = np.random.RandomState(seed)
    arrays = {"x": size * rng.randn(batch, d_in), "W_enc": rng.randn(d_in, d_sae), "W_dec": rng.randn(d_sae, d_in)}
    if objective == "paper":
        arrays["W_dec"] /= np.linalg.norm(arrays["W_dec"], axis=1, keepdims=True)
    arrays["b_dec"] = size * rng.randn(d_in)
    architecture, options = VARIANTS[variant]
    biases = ("b_enc",) if architecture == "standard" else ("b_gate", "b_mag")
    arrays |= {name: size * rng.randn(d_sae) for name in biases}
    if architecture == "standard":
        return arrays
    return arrays | ({"r_mag": rng.randn(d_sae)} if options.get("tied", True) else {"W_mag": rng.randn(d_in, d_sae)})


def penalty(acts: Any, p: Arrays, objective: Objective) -> tuple[float, Any, Any]:
    """(value, its gradient with respect to acts, and to W_dec) of E[Σ f_i], or E[Σ f_i ‖d_i‖]."""
    batch = len(acts)
    if objective == "paper":
        return acts.sum() / batch, np.ones_like(acts) / batch, 0.0
    norms = np.linalg.norm(p["W_dec"], axis=1)
    d_W_dec = (acts.sum(0) / batch / norms)[:, None] * p["W_dec"]
    return (acts * norms).sum() / batch, np.broadcast_to(norms / batch, acts.shape), d_W_dec


def reference_standard(p: Arrays, coefficient: float, objective: Objective) -> tuple[Hidden, Arrays, Hidden]:
    """(losses, gradients, hidden): f = ReLU(W_enc (x − b_dec) + b_enc), L = E[‖x − x̂‖² + λ penalty(f)]."""
    x, batch = p["x"], len(p["x"])
    centred = x - p["b_dec"]
    pre = centred @ p["W_enc"] + p["b_enc"]
    f = np.maximum(pre, 0)
    error = f @ p["W_dec"] + p["b_dec"] - x
    value, d_f, d_W_dec = penalty(f, p, objective)
    losses = {"reconstruction": (error**2).sum() / batch, "sparsity": value, "auxiliary": 0.0}
    losses["loss"] = losses["reconstruction"] + coefficient * value

    d_x_hat = 2 * error / batch
    d_pre = (d_x_hat @ p["W_dec"].T + coefficient * d_f) * (pre > 0)
    gradients = {
        "W_enc": centred.T @ d_pre,
        "W_dec": f.T @ d_x_hat + coefficient * d_W_dec,
        "b_enc": d_pre.sum(0),
        "b_dec": d_x_hat.sum(0) - (d_pre @ p["W_enc"].T).sum(0),
    }
    return losses, gradients, {"acts": f, "pre": pre}


def reference_gated(
    p: Arrays, coefficient: float, objective: Objective, options: Hidden
) -> tuple[Hidden, Arrays, Hidden]:
    """(losses, gradients, hidden) of the gated SAE and its ablations."""
    x, batch, tied = p["x"], len(p["x"]), options.get("tied", True)
    auxiliary = options.get("auxiliary") or {"paper": "frozen", "norm_weighted": "unfrozen"}[objective]
    W_mag = p["W_enc"] * np.exp(p["r_mag"]) if tied else p["W_mag"]  # diag(exp(r_mag)) W_gate, transposed
    centred = x - p["b_dec"]
    pi, pre_mag = centred @ p["W_enc"] + p["b_gate"], centred @ W_mag + p["b_mag"]
    gate = pi > 0
    f, relu_pi = gate * np.maximum(pre_mag, 0), np.maximum(pi, 0)
    error = f @ p["W_dec"] + p["b_dec"] - x
    gate_error = relu_pi @ p["W_dec"] + p["b_dec"] - x
    value, d_relu_pi, d_W_dec = penalty(relu_pi, p, objective)
    losses = {
        "reconstruction": (error**2).sum() / batch,
        "sparsity": value,
        "auxiliary": 0.0 if auxiliary == "none" else (gate_error**2).sum() / batch,
    }
    losses["loss"] = losses["reconstruction"] + coefficient * value + losses["auxiliary"]

    d_x_hat = 2 * error / batch
    d_gate_x_hat = 0 * error if auxiliary == "none" else 2 * gate_error / batch
    d_mag = (d_x_hat @ p["W_dec"].T) * gate * (pre_mag > 0)  # nothing through the gate itself
    d_pi = (d_gate_x_hat @ p["W_dec"].T + coefficient * d_relu_pi) * gate
    live = float(auxiliary == "unfrozen")
    gradients = {
        "W_dec": f.T @ d_x_hat + coefficient * d_W_dec + live * (relu_pi.T @ d_gate_x_hat),
        "b_gate": d_pi.sum(0),
        "b_mag": d_mag.sum(0),
        "b_dec": (d_x_hat + live * d_gate_x_hat).sum(0) - (d_pi @ p["W_enc"].T + d_mag @ W_mag.T).sum(0),
    }
    if tied:
        gradients["W_enc"] = centred.T @ (d_pi + d_mag * np.exp(p["r_mag"]))
        gradients["r_mag"] = (d_mag * (centred @ W_mag)).sum(0)
    else:
        gradients |= {"W_enc": centred.T @ d_pi, "W_mag": centred.T @ d_mag}
    if not options.get("learn_r_mag", True):
        del gradients["r_mag"]
    return losses, gradients, {"acts": f, "pi": pi, "pre_mag": pre_mag}


def reference(variant: str, p: Arrays, coefficient: float, objective: Objective) -> tuple[Hidden, Arrays, Hidden]:
    architecture, options = VARIANTS[variant]
    if architecture == "standard":
        return reference_standard(p, coefficient, objective)
    if architecture == "gated":
        return reference_gated(p, coefficient, objective, options)
    # Rescale & shift: a gated SAE of which only r_mag and b_mag are learnt, on the reconstruction alone.
    losses, gradients, hidden = reference_gated(p, 0.0, "paper", {"auxiliary": "none"})
    losses = {"reconstruction": losses["reconstruction"], "sparsity": 0.0, "auxiliary": 0.0}
    return losses | {"loss": losses["reconstruction"]}, {k: gradients[k] for k in ("r_mag", "b_mag")}, hidden


def assert_close(name: str, actual: torch.Tensor, expected: Any, tolerance: float = 1e-6) -> None:
    expected = torch.as_tensor(np.asarray(expected))
    assert actual.shape == expected.shape, name
    rounding = 1e-300  # a coefficient may be the smallest of all numbers
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max() + rounding, name


def check(sae: SAE, arrays: Arrays, variant: str, coefficient: float, objective: Objective, tolerance: float) -> None:
    """Losses, activations and every gradient of `sae`, which holds the parameters of `arrays`."""
    losses, gradients, hidden = reference(variant, arrays, coefficient, objective)
    x_BD = torch.from_numpy(arrays["x"]).to(sae.W_enc)
    actual = sae.losses(x_BD, coefficient, objective)
    actual.loss.backward()
    for name, expected in losses.items():
        assert_close(name, getattr(actual, name), expected, tolerance)
    assert_close("acts_BF", actual.acts_BF, hidden["acts"], tolerance)
    assert_close("encode", sae.encode(x_BD).detach(), hidden["acts"], tolerance)
    assert_close("forward", sae(x_BD).detach(), hidden["acts"] @ arrays["W_dec"] + arrays["b_dec"], tolerance)
    assert set(gradients) == {name for name, p in sae.named_parameters() if p.requires_grad}
    for name, parameter in sae.named_parameters():
        if name in gradients:
            assert parameter.grad is not None, name
            assert_close(name, parameter.grad, gradients[name], tolerance)
        else:
            assert parameter.grad is None, name


def check_engine(
    sae: SAE, arrays: Arrays, variant: str, coefficient: float, objective: Objective, tolerance: float
) -> None:
    """What the kernels of the sparse engine make of it, whatever the share of active entries."""
    losses, gradients, hidden = reference(variant, arrays, coefficient, objective)
    engine = SparseCPUEngine(threads=2, dense_above=1)
    engine.prepare(sae)
    losses_4, fired_F = engine.step(sae, torch.from_numpy(arrays["x"]).float(), coefficient, objective)
    for name, actual in zip(("loss", "reconstruction", "sparsity", "auxiliary"), losses_4, strict=True):
        assert_close(name, actual, losses[name], tolerance)
    assert fired_F.tolist() == (np.asarray(hidden["acts"]) > 0).sum(0).tolist()
    assert set(gradients) == {name for name, p in sae.named_parameters() if p.grad is not None}
    for name, expected in gradients.items():
        gradient = sae.get_parameter(name).grad
        assert gradient is not None
        assert_close(name, gradient, expected, tolerance)


def distance_to_thresholds(variant: str, arrays: Arrays, objective: Objective) -> float:
    hidden = reference(variant, arrays, 1.0, objective)[2]
    return min(float(np.abs(pre).min()) for name, pre in hidden.items() if name != "acts")


@variants
@objectives
@CASES
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 17)),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.03, 1.0, 30.0]),
    coefficient=st.floats(0, 20),
)
def test_losses_and_gradients_are_those_of_the_papers_equations(
    variant: str, objective: Objective, shape: tuple[int, int, int], seed: int, size: float, coefficient: float
) -> None:
    arrays = random_case(variant, *shape, seed, size, objective)
    assume(distance_to_thresholds(variant, arrays, objective) > 1e-9)  # not within rounding of a threshold
    check(make_sae(variant, *shape[1:], arrays), arrays, variant, coefficient, objective, 1e-6)


@variants
@objectives
@settings(CASES, max_examples=8, derandomize=True)  # in smaller batches a sum may cancel below the rounding
@given(
    shape=st.tuples(st.integers(4, 40), st.integers(3, 16), st.integers(6, 40)),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.03, 1.0, 30.0]),
    coefficient=st.just(0.0) | st.floats(1e-3, 20),
)
def test_losses_and_gradients_hold_in_single_precision(
    variant: str, objective: Objective, shape: tuple[int, int, int], seed: int, size: float, coefficient: float
) -> None:
    arrays = random_case(variant, *shape, seed, size, objective)
    rounded = {name: array.astype(np.float32).astype(np.float64) for name, array in arrays.items()}
    assume(distance_to_thresholds(variant, rounded, objective) > 1e-5 * size)
    check(make_sae(variant, *shape[1:], rounded).float(), rounded, variant, coefficient, objective, 1e-4)
    check_engine(make_sae(variant, *shape[1:], rounded).float(), rounded, variant, coefficient, objective, 1e-4)


# ---- stop-gradients, one by one -------------------------------------------------------------------------------------


def gradient(
    term: str, parameter: str, sae: SAE, x_BD: torch.Tensor, objective: Objective = "paper"
) -> torch.Tensor | None:
    """Of one term of the loss; None or zeros where none arrives."""
    value = getattr(sae.losses(x_BD, 1.0, objective), term)
    if not value.requires_grad or not sae.get_parameter(parameter).requires_grad:
        return None
    return torch.autograd.grad(value, sae.get_parameter(parameter), allow_unused=True)[0]


def is_none_or_zero(tensor: torch.Tensor | None) -> bool:
    return tensor is None or not tensor.any()


GATE = "W_enc b_gate b_dec"
"""Parameters that π_gate depends on."""
REACHED = {
    # (variant, objective): parameters that reconstruction, sparsity and auxiliary reach
    ("standard", "paper"): ("W_enc W_dec b_enc b_dec", "W_enc b_enc b_dec", ""),
    ("standard", "norm_weighted"): ("W_enc W_dec b_enc b_dec", "W_enc W_dec b_enc b_dec", ""),
    ("gated", "paper"): ("W_enc W_dec r_mag b_mag b_dec", GATE, GATE),
    ("gated", "norm_weighted"): ("W_enc W_dec r_mag b_mag b_dec", f"{GATE} W_dec", f"{GATE} W_dec"),
    ("untied", "paper"): ("W_mag W_dec b_mag b_dec", GATE, GATE),
    ("untied", "norm_weighted"): ("W_mag W_dec b_mag b_dec", f"{GATE} W_dec", f"{GATE} W_dec"),
    ("r_mag-0", "paper"): ("W_enc W_dec b_mag b_dec", GATE, GATE),
    ("frozen", "norm_weighted"): ("W_enc W_dec r_mag b_mag b_dec", f"{GATE} W_dec", GATE),
    ("unfrozen", "paper"): ("W_enc W_dec r_mag b_mag b_dec", GATE, f"{GATE} W_dec"),
    ("no-auxiliary", "paper"): ("W_enc W_dec r_mag b_mag b_dec", GATE, ""),
    ("no-auxiliary", "norm_weighted"): ("W_enc W_dec r_mag b_mag b_dec", f"{GATE} W_dec", ""),
    ("rescale_shift", "paper"): ("r_mag b_mag", "", ""),
    ("rescale_shift", "norm_weighted"): ("r_mag b_mag", "", ""),
}


@pytest.mark.parametrize(("variant", "objective"), REACHED)
@pytest.mark.parametrize(("place", "term"), [(0, "reconstruction"), (1, "sparsity"), (2, "auxiliary")])
def test_each_term_reaches_these_parameters_and_no_others(
    variant: str, objective: Objective, place: int, term: str
) -> None:
    arrays = random_case(variant, 16, 6, 12, seed=0, size=1.0, objective=objective)
    sae, x_BD = make_sae(variant, 6, 12, arrays), torch.from_numpy(arrays["x"])
    names = [name for name, _ in sae.named_parameters()]
    reached = {name for name in names if not is_none_or_zero(gradient(term, name, sae, x_BD, objective))}
    assert reached == set(REACHED[variant, objective][place].split())


@pytest.mark.parametrize("decoder", ["frozen", "unfrozen"])
def test_the_auxiliary_term_reaches_b_dec_in_the_decoder_only_if_that_is_live(decoder: str) -> None:
    p = random_case(decoder, 16, 6, 12, seed=0, size=1.0)
    relu_pi = np.maximum((p["x"] - p["b_dec"]) @ p["W_enc"] + p["b_gate"], 0)
    d_x_hat = 2 * (relu_pi @ p["W_dec"] + p["b_dec"] - p["x"]) / len(p["x"])
    encoder_side = -((d_x_hat @ p["W_dec"].T * (relu_pi > 0)) @ p["W_enc"].T).sum(0)
    decoder_side = d_x_hat.sum(0) if decoder == "unfrozen" else 0
    actual = gradient("auxiliary", "b_dec", make_sae(decoder, 6, 12, p), torch.from_numpy(p["x"]))
    assert actual is not None
    assert_close("b_dec", actual, encoder_side + decoder_side)


def test_the_auxiliary_term_gives_b_dec_nothing_when_every_gate_is_off() -> None:
    arrays = random_case("gated", 16, 6, 12, seed=0, size=1.0)
    sae, x_BD = make_sae("gated", 6, 12, arrays), torch.from_numpy(arrays["x"])
    with torch.no_grad():
        sae.get_parameter("b_gate").fill_(-1e3)
    assert not sae.encode(x_BD).any()
    assert is_none_or_zero(gradient("auxiliary", "b_dec", sae, x_BD))


@pytest.mark.parametrize("variant", ["gated", "untied"])
def test_the_gate_passes_no_gradient_of_the_reconstruction(variant: str) -> None:
    """f_gate is a step: what moves it is the auxiliary term and the penalty."""
    arrays = random_case(variant, 16, 6, 12, seed=0, size=1.0)
    sae, x_BD = make_sae(variant, 6, 12, arrays), torch.from_numpy(arrays["x"])
    assert is_none_or_zero(gradient("reconstruction", "b_gate", sae, x_BD))
    if variant == "untied":
        assert is_none_or_zero(gradient("reconstruction", "W_enc", sae, x_BD))


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
