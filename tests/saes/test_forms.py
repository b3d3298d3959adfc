"""Other forms of the same function: decoder norms folded into the encoder, and gated SAEs written as JumpReLU SAEs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsae_ray.errors import UserError
from gsae_ray.saes import SAE, SAEConfig, build, load, to_bytes
from gsae_ray.saes.gated import GatedSAE
from gsae_ray.saes.jumprelu import JumpReLUSAE

N, M = 6, 20
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "gated": ("gated", {}),
    "untied": ("gated", {"tied": False}),
    "r_mag-0": ("gated", {"learn_r_mag": False}),
    "rescale_shift": ("rescale_shift", {}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu of x": ("jumprelu", {"subtract_b_dec": False}),
    "topk": ("topk", {"k": 3}),
    "topk of x": ("topk", {"k": 3, "subtract_b_dec": False}),
}
forms = pytest.mark.parametrize("form", FORMS)
fold_norms_forms = pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("topk")])
tied_forms = pytest.mark.parametrize("form", ["gated", "r_mag-0", "rescale_shift"])


def random_sae(form: str, seed: int = 0) -> SAE:
    """Every parameter random, decoder norms from 0.05 to 20, in double precision."""
    architecture, options = FORMS[form]
    cfg = SAEConfig(architecture=architecture, d_in=N, d_sae=M, hyperparameters=options)
    sae = build(cfg).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if name == "threshold":
                parameter.abs_()
        sae.W_dec.mul_(20 ** torch.linspace(-1, 1, M, dtype=torch.float64)[:, None])
    return sae


def random_rows(rows: int = 500, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- raw activations ------------------------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_activations_of_any_dtype_are_encoded_in_the_dtype_of_the_weights(
    form: str, weights: torch.dtype, given: torch.dtype
) -> None:
    sae, x_BD = random_sae(form).to(weights), random_rows().to(given)
    acts_BF, expected_BF = sae.encode(x_BD), sae.encode(x_BD.to(weights))
    assert acts_BF.dtype == weights and torch.equal(acts_BF, expected_BF) and acts_BF.any()
    assert torch.equal(sae.decode(acts_BF.to(given)), sae.decode(acts_BF.to(given).to(weights)))
    assert torch.equal(sae(x_BD), sae.decode(expected_BF))


# ---- decoder norms --------------------------------------------------------------------------------------------------


@fold_norms_forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_folding_the_norms_keeps_reconstructions_and_gives_unit_rows(form: str, dtype: torch.dtype) -> None:
    sae, folded = random_sae(form).to(dtype), random_sae(form).to(dtype)
    folded.fold_norms()
    x_BD = random_rows().to(dtype)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(M, dtype=dtype), atol=1e-6, rtol=0)
    assert (folded(x_BD) - sae(x_BD)).norm() <= 1e-5 * sae(x_BD).norm()
    acts_BF = sae.encode(x_BD)
    assert 0 < (acts_BF > 0).double().mean() < 1
    torch.testing.assert_close(folded.encode(x_BD), acts_BF * sae.W_dec.norm(dim=1), rtol=1e-4, atol=1e-4)


@fold_norms_forms
def test_folding_twice_is_folding_once(form: str) -> None:
    once, twice = random_sae(form), random_sae(form)
    once.fold_norms()
    twice.fold_norms()
    twice.fold_norms()
    for name, parameter in once.named_parameters():
        torch.testing.assert_close(twice.get_parameter(name), parameter)


@fold_norms_forms
def test_the_order_of_folding_scale_and_norms_does_not_matter(form: str) -> None:
    first, second = random_sae(form), random_sae(form)
    first.fold_scale(7.0)
    first.fold_norms()
    second.fold_norms()
    second.fold_scale(7.0)
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(second.get_parameter(name), parameter)


@forms
def test_folding_the_scale_makes_an_sae_of_scaled_activations_take_raw_ones(form: str) -> None:
    scaled, folded = random_sae(form), random_sae(form)
    folded.fold_scale(0.037)
    x_BD = random_rows()
    torch.testing.assert_close(folded.encode(x_BD / 0.037), scaled.encode(x_BD) / 0.037)
    torch.testing.assert_close(folded(x_BD / 0.037), scaled(x_BD) / 0.037)


def test_norms_of_a_topk_sae_are_not_folded_which_would_be_another_function() -> None:
    with pytest.raises(UserError, match="fold_norms: of a TopK SAE others would then be the k largest features"):
        random_sae("topk").fold_norms()


def test_a_decoder_row_of_zeros_folds_to_zeros() -> None:
    sae = random_sae("gated")
    with torch.no_grad():
        sae.W_dec[3] = 0
    sae.fold_norms()
    assert all(parameter.isfinite().all() for parameter in sae.parameters())
    assert not sae.W_dec[3].any()


# ---- b_dec in the encoder -------------------------------------------------------------------------------------------


@forms
def test_with_or_without_b_dec_subtracted_it_is_the_same_function(form: str) -> None:
    sae, x_BD = random_sae(form), random_rows()
    other = sae.subtracting_b_dec(not sae.subtracts_b_dec)
    assert type(other) is type(sae) and other.subtracts_b_dec is not sae.subtracts_b_dec
    torch.testing.assert_close(other.encode(x_BD), sae.encode(x_BD), rtol=1e-9, atol=1e-9)
    assert other.subtracting_b_dec(other.subtracts_b_dec) is other
    back = other.subtracting_b_dec(sae.subtracts_b_dec)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(back.get_parameter(name), parameter, rtol=1e-12, atol=1e-12)
    assert any(not torch.equal(other.get_parameter(name), p) for name, p in sae.named_parameters())
    sae.b_dec.data.zero_()  # of x, b_dec is the decoder's alone
    alone = sae.subtracting_b_dec(False)
    alone.b_dec.data.fill_(3.0)
    torch.testing.assert_close(alone.encode(x_BD), sae.encode(x_BD), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["standard", "gated", "untied", "jumprelu", "topk"])
def test_that_b_dec_is_not_subtracted_is_saved_and_said_to_saelens(form: str, tmp_path: Path) -> None:
    sae = random_sae(form).float()
    sae.cfg = sae.cfg.model_copy(update={"hyperparameters": {"l1_coefficient": 1.0, **sae.cfg.hyperparameters}})
    if form in ("jumprelu", "topk"):
        del sae.cfg.hyperparameters["l1_coefficient"]
    sae.subtracting_b_dec(False).save(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["apply_b_dec_to_input"] is False
    loaded, x_BD = load(tmp_path), random_rows().float()
    assert not loaded.subtracts_b_dec
    assert torch.equal(loaded.encode(x_BD), sae.subtracting_b_dec(False).encode(x_BD))


@pytest.mark.parametrize("form", ["standard", "gated"])
def test_the_jumprelu_form_of_one_that_takes_x_takes_x(form: str) -> None:
    sae, x_BD = random_sae(form).subtracting_b_dec(False), random_rows()
    jumprelu = sae.to_jumprelu()
    assert not jumprelu.subtracts_b_dec
    torch.testing.assert_close(jumprelu.encode(x_BD), sae.encode(x_BD), rtol=1e-9, atol=1e-9)


# ---- the JumpReLU form ----------------------------------------------------------------------------------------------


@tied_forms
@settings(max_examples=30, deadline=None, database=None)
@given(seed=st.integers(0, 2**32 - 1), gate=st.sampled_from([-2.0, 0.0, 2.0]), mag=st.sampled_from([-2.0, 0.0, 2.0]))
def test_the_jumprelu_form_is_the_same_function(form: str, seed: int, gate: float, mag: float) -> None:
    """Biases and r_mag of all signs, away from the threshold."""
    sae = random_sae(form, seed)
    assert isinstance(sae, GatedSAE)
    with torch.no_grad():
        sae.b_gate.add_(gate)
        sae.b_mag.add_(mag)
    jumprelu = sae.to_jumprelu()
    x_BD = random_rows(100, seed)
    pi_BF = ((x_BD - sae.b_dec) @ sae.W_enc + sae.b_gate).detach()
    away_BF = pi_BF.abs() > 1e-9
    expected_BF, acts_BF = sae.encode(x_BD), jumprelu.encode(x_BD)
    torch.testing.assert_close(acts_BF[away_BF], expected_BF[away_BF], rtol=1e-9, atol=1e-9)
    assert torch.equal((acts_BF > 0)[away_BF], (expected_BF > 1e-12)[away_BF])
    whole_B = away_BF.all(1)
    torch.testing.assert_close(jumprelu(x_BD)[whole_B], sae(x_BD)[whole_B], rtol=1e-9, atol=1e-9)


def test_every_sign_of_the_biases_and_of_r_mag_occurs() -> None:
    """So that the test above covers thresholds that are cut at 0 and thresholds that are not."""
    seen = set()
    for seed in range(20):
        sae = random_sae("gated", seed)
        signs = [(sae.get_parameter(name) > 0).tolist() for name in ("b_gate", "b_mag", "r_mag")]
        seen |= set(zip(*signs, strict=True))
    assert len(seen) == 8


@tied_forms
def test_the_threshold_is_theta_or_0(form: str) -> None:
    sae = random_sae(form)
    assert isinstance(sae, GatedSAE)
    jumprelu = sae.to_jumprelu()
    b_gate, b_mag, r_mag = (sae.get_parameter(name).detach().numpy() for name in ("b_gate", "b_mag", "r_mag"))
    theta = b_mag - np.exp(r_mag) * b_gate
    assert (theta > 0).any() and (theta < 0).any()
    np.testing.assert_allclose(jumprelu.threshold.detach().numpy(), np.maximum(theta, 0), rtol=1e-12)
    np.testing.assert_allclose(jumprelu.W_enc.detach().numpy(), sae.W_enc.detach().numpy() * np.exp(r_mag), rtol=1e-12)
    assert torch.equal(jumprelu.b_enc, sae.b_mag)
    assert torch.equal(jumprelu.W_dec, sae.W_dec)
    assert torch.equal(jumprelu.b_dec, sae.b_dec)


def test_the_jumprelu_form_is_a_copy_of_the_same_type_and_place() -> None:
    sae = random_sae("gated").float()
    assert isinstance(sae, GatedSAE)
    jumprelu = sae.to_jumprelu()
    assert isinstance(jumprelu, JumpReLUSAE)
    assert {p.dtype for p in jumprelu.parameters()} == {torch.float32}
    assert jumprelu.cfg.architecture == "jumprelu"
    assert (jumprelu.cfg.d_in, jumprelu.cfg.d_sae, jumprelu.cfg.site) == (N, M, sae.cfg.site)
    before = to_bytes(sae)
    with torch.no_grad():
        for parameter in jumprelu.parameters():
            parameter.add_(1)
    assert to_bytes(sae) == before


@pytest.mark.parametrize("scale", [0.037, 8.0])
def test_folding_the_scale_before_or_after_writing_as_jumprelu_is_the_same(scale: float) -> None:
    before, after = random_sae("gated"), random_sae("gated")
    assert isinstance(before, GatedSAE) and isinstance(after, GatedSAE)
    before.fold_scale(scale)
    first, second = before.to_jumprelu(), after.to_jumprelu()
    threshold = second.threshold.detach().clone()
    second.fold_scale(scale)
    torch.testing.assert_close(second.threshold.detach(), threshold / scale)
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(second.get_parameter(name), parameter)


def test_a_jumprelu_sae_is_saved_and_loaded(tmp_path: Path) -> None:
    gated = random_sae("gated").float()
    assert isinstance(gated, GatedSAE)
    jumprelu = gated.to_jumprelu()
    jumprelu.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, JumpReLUSAE)
    assert to_bytes(loaded) == to_bytes(jumprelu)
    x_BD = random_rows().float()
    assert torch.equal(loaded(x_BD), jumprelu(x_BD))


def test_untied_encoders_have_no_jumprelu_form() -> None:
    sae = random_sae("untied")
    assert isinstance(sae, GatedSAE)
    with pytest.raises(UserError, match="tied: false"):
        sae.to_jumprelu()


def test_an_activation_at_its_threshold_is_off() -> None:
    sae = random_sae("jumprelu")
    assert isinstance(sae, JumpReLUSAE)
    with torch.no_grad():
        for name in ("W_enc", "b_dec"):
            sae.get_parameter(name).zero_()
        sae.b_enc.fill_(1.0)
        sae.threshold.fill_(1.0)
        assert not sae.encode(random_rows()).any()
        sae.threshold.fill_(1 - 1e-15)
        assert sae.encode(random_rows()).eq(1).all()
