"""λ between conventions, by brute force: both losses on the same data and SAE, which must be proportional."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from trainers import SITE, N, make, run, weights

from gsae_ray.training.l1_units import UNITS, Scale, convert

ROWS, WIDTH, FEATURES = 200, 8, 24


def activations() -> Tensor:
    """Rows [ROWS, WIDTH] whose norms vary, so that E‖x‖ is not √E‖x‖²."""
    generator = torch.Generator().manual_seed(0)
    x_BD = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return 13 * x_BD * torch.rand(ROWS, 1, generator=generator, dtype=torch.float64) + 2


def scale_of(x_BD: Tensor) -> Scale:
    norms_B = x_BD.norm(dim=1)
    return Scale(WIDTH, norms_B.square().mean().item(), norms_B.mean().item())


def loss(convention: str, x_BD: Tensor, sae: dict[str, Tensor], l1: float) -> tuple[float, float]:
    """(k, the convention's loss) of an SAE of raw activations, as each convention writes it down.

    Training on k·x, biases are k times, and so are the features.
    """
    scale = scale_of(x_BD)
    k = {
        "sum": math.sqrt(WIDTH / scale.mean_square_norm),  # E‖k·x‖² = n
        "saelens": math.sqrt(WIDTH) / x_BD.norm(dim=1).mean().item(),  # E‖k·x‖ = √n
        "dictionary_learning": 1 / math.sqrt(scale.mean_square_norm),  # E‖k·x‖² = 1
    }.get(convention, 1.0)
    z_BD = k * x_BD
    f_BF = torch.relu((z_BD - k * sae["b_dec"]) @ sae["W_enc"] + k * sae["b_enc"])
    error_BD = z_BD - (f_BF @ sae["W_dec"] + k * sae["b_dec"])
    squared = error_BD.square().mean(1) if convention.startswith("paper") else error_BD.square().sum(1)
    return k, (squared.mean() + l1 * f_BF.sum(1).mean()).item()


def random_sae(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (WIDTH, FEATURES), "W_dec": (FEATURES, WIDTH), "b_enc": (FEATURES,), "b_dec": (WIDTH,)}
    sae = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    sae["W_dec"] /= sae["W_dec"].norm(dim=1, keepdim=True)
    return sae


@pytest.mark.parametrize("source", ["sum", "paper", "raw"])
@pytest.mark.parametrize("target", ["sum", "paper", "raw", "saelens", "dictionary_learning"])
def test_losses_at_converted_coefficients_are_proportional(source: str, target: str) -> None:
    """Then they have the same minima: the ratio is m·k² of one to the other, whatever the SAE."""
    x_BD = activations()
    l1 = 3.0 * UNITS[source](scale_of(x_BD))
    converted = convert(l1, source, target, scale_of(x_BD))
    ratios = []
    for seed in range(5):
        sae = random_sae(seed)
        ratios.append(loss(target, x_BD, sae, converted)[1] / loss(source, x_BD, sae, l1)[1])
    assert ratios == pytest.approx([ratios[0]] * 5, rel=1e-9)
    wrong = [
        loss(target, x_BD, random_sae(s), 1.1 * converted)[1] / loss(source, x_BD, random_sae(s), l1)[1]
        for s in range(5)
    ]
    assert max(wrong) / min(wrong) > 1.0001  # the test sees a wrong coefficient


def test_minima_in_two_conventions_are_the_same_sae() -> None:
    """One constant feature of a fixed direction, on a grid of strengths."""
    x_BD = activations()
    scale = scale_of(x_BD)
    direction_D = torch.ones(WIDTH, dtype=torch.float64) / math.sqrt(WIDTH)
    best = {}
    for convention, (m, k) in {
        "sum": (1, math.sqrt(WIDTH / scale.mean_square_norm)),
        "paper": (1 / WIDTH, 1.0),
        "saelens": (1, math.sqrt(WIDTH) / scale.required_mean_norm),
        "dictionary_learning": (1, 1 / scale.rms_norm),
    }.items():
        l1 = convert(0.2, "sum", convention, scale)
        f_G = torch.linspace(0, 20, 4001, dtype=torch.float64)
        residual_GBD = k * x_BD[None, :50] - k * f_G[:, None, None] * direction_D
        best[convention] = f_G[(m * residual_GBD.square().sum(2).mean(1) + l1 * k * f_G).argmin()].item()
    assert best["sum"] > 0
    assert set(best.values()) == {best["sum"]}


def test_conversion_goes_both_ways_and_passes_through_any_other() -> None:
    scale = scale_of(activations())
    for a in UNITS:
        for b in UNITS:
            assert convert(convert(2.0, a, b, scale), b, a, scale) == pytest.approx(2.0)
            assert convert(convert(2.0, a, "raw", scale), "raw", b, scale) == pytest.approx(convert(2.0, a, b, scale))


def test_the_table_says_what_the_paper_and_its_neighbours_say() -> None:
    scale = Scale(n=100, mean_square_norm=400.0, mean_norm=16.0)
    assert convert(1.0, "paper", "raw", scale) == pytest.approx(100)  # λ_sum = n·λ_paper on raw activations
    c = math.sqrt(100 / 400)
    assert convert(1.0, "raw", "sum", scale) == pytest.approx(c)  # λ_scaled = c·λ_raw
    assert convert(5.0, "sum", "dictionary_learning", scale) == pytest.approx(5 / math.sqrt(100))  # 1/√n of ours
    assert convert(1.0, "raw", "saelens", scale) == pytest.approx(math.sqrt(100) / 16)


def test_a_convention_that_needs_the_mean_norm_says_so() -> None:
    with pytest.raises(ValueError, match="mean_norm is needed"):
        convert(1.0, "sum", "saelens", Scale(4, 2.0))


@pytest.mark.parametrize("input_scaling", [True, False])
@pytest.mark.parametrize(("architecture", "objective"), [("gated", "paper"), ("standard", "norm_weighted")])
def test_training_in_the_papers_units_and_in_sum_units_gives_the_same_weights(
    architecture: str, objective: Any, input_scaling: bool
) -> None:
    both: dict[str, Any] = {"objective": objective, "input_scaling": input_scaling, "tokens": 2560}
    ours = make(architecture, l1=2.0, **both)
    scale = Scale(N, ours.stream.source.statistics()[SITE].mean_square_norm)
    papers = make(architecture, l1=convert(2.0, "sum", "paper", scale), l1_units="paper", **both)
    assert papers.coefficient == pytest.approx(ours.coefficient, rel=1e-12)
    run(ours)
    run(papers)
    for name, tensor in weights(ours).items():
        torch.testing.assert_close(weights(papers)[name], tensor, rtol=1e-6, atol=1e-6)


def test_sum_units_mean_the_same_sparsity_whether_or_not_training_scales() -> None:
    """λ of a file stays when `input_scaling` changes: what is minimised is the same function, times a constant."""
    scaled, raw = make(l1=2.0, input_scaling=True), make(l1=2.0, input_scaling=False)
    assert raw.scale == 1.0
    assert scaled.coefficient == pytest.approx(2.0)
    assert raw.coefficient == pytest.approx(2.0 / scaled.scale)
