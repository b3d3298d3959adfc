"""SAEs as objects: initialisation, the unit-norm decoder, folding, the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import Field
from random_saes import architectures, config, initialised, trained
from torch import Tensor

from gsae_ray.errors import UserError
from gsae_ray.saes import REGISTRY, SAE, Losses, Objective, build, load, register, to_bytes

# ---- initialisation -------------------------------------------------------------------------------------------------


@architectures
def test_an_sae_starts_with_unit_decoder_rows_a_tied_encoder_and_the_mean_as_decoder_bias(architecture: str) -> None:
    mean_D = torch.randn(6)
    sae = initialised(architecture, mean_D=mean_D)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(10), atol=1e-6, rtol=0)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert torch.equal(sae.b_dec, mean_D)
    others = [p for name, p in sae.named_parameters() if name not in ("W_enc", "W_dec", "b_dec")]
    assert others
    assert not any(p.any() for p in others)


@architectures
def test_encoder_and_decoder_are_untied_after_the_start(architecture: str) -> None:
    sae = initialised(architecture)
    before = sae.W_enc.clone()
    with torch.no_grad():
        sae.W_dec.mul_(2)
    assert torch.equal(sae.W_enc, before)


@architectures
def test_the_seed_decides_the_initialisation_and_nothing_else_does(architecture: str) -> None:
    first = to_bytes(initialised(architecture, seed=3))
    torch.manual_seed(12345)  # the global generator plays no part, nor is it used
    expected = torch.randn(1)
    torch.manual_seed(12345)
    assert to_bytes(initialised(architecture, seed=3)) == first
    assert torch.equal(torch.randn(1), expected)
    assert to_bytes(initialised(architecture, seed=4)) != first


# ---- the unit-norm decoder ------------------------------------------------------------------------------------------


@architectures
def test_normalising_the_decoder_keeps_directions_and_makes_norms_one(architecture: str) -> None:
    sae = initialised(architecture)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(10, 1) * 9 + 0.1)
    before = sae.W_dec.detach().clone()
    sae.normalise_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(10), atol=1e-6, rtol=0)
    torch.testing.assert_close(sae.W_dec * before.norm(dim=1, keepdim=True), before)


@architectures
def test_the_projected_decoder_gradient_is_orthogonal_to_each_row_and_otherwise_untouched(architecture: str) -> None:
    sae = trained(architecture).double()
    sae.normalise_decoder()
    sae.losses(torch.randn(20, 6, dtype=torch.float64), 1.0).loss.backward()
    gradients = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    sae.project_decoder_gradient()
    assert sae.W_dec.grad is not None
    assert ((gradients["W_dec"] * sae.W_dec).sum(1).abs() > 1e-3).any()  # there was something to remove
    torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(10, dtype=torch.float64))
    removed = gradients.pop("W_dec") - sae.W_dec.grad
    along_row = (removed * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
    torch.testing.assert_close(removed, along_row.detach())
    assert all(torch.equal(sae.get_parameter(name).grad, gradient) for name, gradient in gradients.items())  # type: ignore[arg-type]


@architectures
def test_projecting_without_a_gradient_does_nothing(architecture: str) -> None:
    sae = trained(architecture)
    sae.project_decoder_gradient()
    assert sae.W_dec.grad is None


# ---- folding the scale ----------------------------------------------------------------------------------------------


@architectures
@pytest.mark.parametrize("scale", [0.037, 0.25, 8.0, 113.0])
def test_a_folded_sae_takes_raw_activations(architecture: str, scale: float) -> None:
    """encode_folded(x) = encode(c·x) / c and decode likewise; exact for a power of two, else to rounding."""
    scaled, folded = trained(architecture).double(), trained(architecture).double()
    folded.fold_scale(scale)
    x_BD = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) / scale
    acts_BF, expected_BF = folded.encode(x_BD), scaled.encode(scale * x_BD) / scale
    atol, rtol = (0.0, 0.0) if scale in (0.25, 8.0) else (1e-12 / scale, 1e-12)
    assert 0 < (acts_BF > 0).double().mean() < 1
    assert torch.equal(acts_BF > 0, expected_BF > 0)
    torch.testing.assert_close(acts_BF, expected_BF, atol=atol, rtol=rtol)
    torch.testing.assert_close(folded(x_BD), scaled(scale * x_BD) / scale, atol=atol, rtol=rtol)


@architectures
def test_folding_changes_biases_only(architecture: str) -> None:
    sae, folded = trained(architecture), trained(architecture)
    folded.fold_scale(4.0)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(10), atol=1e-6, rtol=0)
    for name, parameter in sae.named_parameters():
        expected = parameter / 4 if name.startswith("b_") else parameter  # r_mag and the weights have no unit
        assert torch.equal(folded.get_parameter(name), expected), name


# ---- the registry ---------------------------------------------------------------------------------------------------


@pytest.fixture
def soft() -> Iterator[type[SAE]]:
    """A new architecture, as a user would write it in one file."""

    @register("test_soft")
    class SoftSAE(SAE):
        sparsity_hyperparameter = "strength"

        class Hyperparameters(SAE.Hyperparameters):
            strength: float = Field(ge=0, description="a weight")

        def encode(self, x_BD: Tensor) -> Tensor:
            return torch.nn.functional.softplus((x_BD - self.b_dec) @ self.W_enc)

        def losses(
            self, x_BD: Tensor, coefficient: float, objective: Objective = "paper", y_BD: Tensor | None = None
        ) -> Losses:
            acts_BF = self.encode(x_BD)
            error = (self._decoder_target(x_BD, y_BD) - self._decode(acts_BF)).square().sum() / len(x_BD)
            penalty = acts_BF.sum() / len(x_BD)
            return Losses(error + coefficient * penalty, error, penalty, x_BD.new_zeros(()), acts_BF.detach())

    yield SoftSAE
    REGISTRY.pop("test_soft")


def test_a_registered_architecture_can_be_built_saved_and_loaded(soft: type[SAE], tmp_path: Path) -> None:
    sae = build(config("test_soft", hyperparameters={"strength": 0.5}))
    assert type(sae) is soft
    assert soft.architecture == "test_soft"
    sae.initialise(torch.Generator().manual_seed(0), torch.ones(6))
    sae.save(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is soft
    assert loaded.sparsity_coefficient == 0.5
    assert to_bytes(loaded) == to_bytes(sae)


@pytest.mark.usefixtures("soft")
def test_the_registry_holds_the_packages_architectures_and_what_was_registered() -> None:
    assert set(REGISTRY) >= {"standard", "gated", "test_soft"}
    assert {name: REGISTRY[name].architecture for name in REGISTRY} == {name: name for name in REGISTRY}
    with pytest.raises(UserError, match="did you mean 'test_soft'"):
        build(config("test_sof"))


def test_an_architecture_whose_sparsity_hyperparameter_does_not_exist_is_refused_at_once(soft: type[SAE]) -> None:
    class Forgetful(soft):  # type: ignore[misc, valid-type]
        sparsity_hyperparameter = "l1_coefficient"

    with pytest.raises(TypeError, match="forgetful: sparsity_hyperparameter is 'l1_coefficient', which is none of"):
        register("forgetful")(Forgetful)

    class Older(soft):  # type: ignore[misc, valid-type]
        sparsity_in_l1_units = False

    with pytest.raises(TypeError, match="forgetful: sparsity_in_l1_units is now sparsity_units"):
        register("forgetful")(Older)
    assert "forgetful" not in REGISTRY


def test_an_sae_shows_what_it_is_and_what_a_frontier_says_of_it() -> None:
    sae = initialised("gated")
    assert "d_in=6, d_sae=10" in repr(sae) and "l1_coefficient=2.5" in repr(sae) and "l0=" not in repr(sae)
    measured = {"frontier": {"l0": 22.5312, "loss_recovered": 0.98, "fvu": None}, "choice": "the highest <quality>"}
    sae.cfg = sae.cfg.model_copy(update={"metadata": measured})
    assert "l0=22.53, loss_recovered=0.98" in repr(sae) and "fvu" not in repr(sae)
    shown = sae._repr_html_()
    assert "<th>l0</th><td>22.53</td>" in shown and "the highest &lt;quality&gt;" in shown
