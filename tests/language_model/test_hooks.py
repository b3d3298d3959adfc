"""Sites mean the same thing in every supported family: tiny random models, every layer."""

from __future__ import annotations

import pytest
import torch
from tiny_models import (
    LAYERS,
    TINY,
    TOKENS,
    D,
    activations_of,
    family,
    layer,
    layers_with,
    logits,
    model_of,
    part,
    point,
    sites_of,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from gsae_ray.config.site import Site
from gsae_ray.language_model.families import FAMILIES
from gsae_ray.language_model.hooks import Edit, by_module, capture, edited, site_widths


def test_every_family_of_the_table_is_tested() -> None:
    assert {model_of(name).config.model_type for name in TINY} == set(FAMILIES)


@family
@layer
def test_what_is_added_to_the_residual_stream_sums_to_its_change(name: str, layer: int) -> None:
    tiny = TINY[name]
    if not tiny.sums:
        return
    pre, post, mlp_out = (Site.of_point(layer, point) for point in ("resid_pre", "resid_post", "mlp_out"))
    mixer = Site.of_module(part(name, layer, tiny.mixer), "output")
    attn_out = Site.of_point(layer, "attn_out") if layer in tiny.attending else mixer
    x = capture(model_of(name), TOKENS, [pre, post, attn_out, mlp_out])
    for added in (attn_out, mlp_out):
        assert x[added].norm() > 0.01 * x[pre].norm()  # else the sum would say little
    torch.testing.assert_close(x[pre] + x[attn_out] + x[mlp_out], x[post], rtol=1e-5, atol=1e-4)


@family
@layer
def test_residual_points_are_the_models_own_hidden_states(name: str, layer: int) -> None:
    model = model_of(name)
    with torch.no_grad():
        hidden = model(TOKENS, output_hidden_states=True, use_cache=False).hidden_states
    x = activations_of(name)
    assert torch.equal(x[Site.of_point(layer, "resid_pre")], hidden[layer])
    resid_post = x[Site.of_point(layer, "resid_post")]
    if layer == LAYERS - 1:  # the last hidden state is after the final norm
        resid_post = model.get_submodule(TINY[name].norm)(resid_post)
    assert torch.equal(resid_post, hidden[layer + 1])


@family
@layer
def test_attn_z_is_the_heads_that_the_output_projection_gets(name: str, layer: int) -> None:
    tiny, model = TINY[name], model_of(name)
    if layer not in tiny.attending:
        return
    attention = part(name, layer, tiny.attention)
    z = activations_of(name)[Site.of_point(layer, "attn_z")]
    assert z.shape == (*TOKENS.shape, tiny.width("attn_z", layer))
    output = Site.of_module(attention, "output")
    project = model.get_submodule(f"{attention}.{tiny.attention_projection}")
    assert torch.equal(project(z), capture(model, TOKENS, [output])[output])


@family
@layer
def test_mlp_post_is_the_neurons_that_the_down_projection_gets(name: str, layer: int) -> None:
    tiny, model = TINY[name], model_of(name)
    if layer not in tiny.dense:
        return
    mlp = part(name, layer, "mlp")
    neurons = activations_of(name)[Site.of_point(layer, "mlp_post")]
    assert neurons.shape == (*TOKENS.shape, tiny.width("mlp_post", layer))
    output = Site.of_module(mlp, "output")
    assert torch.equal(
        model.get_submodule(f"{mlp}.{tiny.mlp_projection}")(neurons), capture(model, TOKENS, [output])[output]
    )


@family
@layer
def test_mlp_in_is_what_the_mlp_computes_what_it_adds_from(name: str, layer: int) -> None:
    tiny, model, x = TINY[name], model_of(name), activations_of(name)
    if not tiny.sums:
        return
    output = model.get_submodule(part(name, layer, "mlp"))(x[Site.of_point(layer, "mlp_in")])
    output = output[0] if isinstance(output, tuple) else output  # experts give their scores too
    if tiny.post_norm:
        output = model.get_submodule(part(name, layer, tiny.post_norm))(output)
    assert torch.equal(output, x[Site.of_point(layer, "mlp_out")])


@family
@layer
def test_mlp_in_is_after_the_norm_before_the_mlp(name: str, layer: int) -> None:
    tiny, model = TINY[name], model_of(name)
    mlp_in = activations_of(name)[Site.of_point(layer, "mlp_in")]
    if not tiny.pre_norm:  # OLMo 2 and 3 norm what the MLP gives, not what it gets
        pre, attn_out = (activations_of(name)[Site.of_point(layer, point)] for point in ("resid_pre", "attn_out"))
        torch.testing.assert_close(mlp_in, pre + attn_out, rtol=1e-5, atol=1e-4)
        return
    normed = Site.of_module(part(name, layer, tiny.pre_norm), "output")
    assert torch.equal(mlp_in, capture(model, TOKENS, [normed])[normed])


@family
@point
def test_splicing_a_sites_own_activations_changes_no_bit_and_zeros_do(name: str, point: str) -> None:
    model = model_of(name)
    clean = logits(model)
    for number in layers_with(name, point):
        site = Site.of_point(number, point)
        with edited(model, {site: lambda x: x.clone()}):
            assert torch.equal(logits(model), clean)
        with edited(model, {site: torch.zeros_like}):
            assert not torch.allclose(logits(model), clean)
    assert torch.equal(logits(model), clean)


@family
def test_splicing_reaches_what_comes_after_the_site_and_nothing_before(name: str) -> None:
    model, before, after = model_of(name), Site.of_point(1, "resid_pre"), Site.of_point(1, "resid_post")
    with edited(model, {Site.of_point(1, "attn_z"): torch.zeros_like}):
        spliced = capture(model, TOKENS, [before, after])
    assert torch.equal(spliced[before], activations_of(name)[before])
    assert not torch.allclose(spliced[after], activations_of(name)[after])


@family
def test_all_sites_in_one_forward_are_each_site_alone(name: str) -> None:
    together = activations_of(name)
    assert set(together) == set(sites_of(name))
    for site in sites_of(name):
        assert torch.equal(together[site], capture(model_of(name), TOKENS, [site])[site]), site


@family
@layer
def test_capture_runs_no_layer_beyond_the_deepest_site(name: str, layer: int) -> None:
    model, calls = model_of(name), [0] * LAYERS

    def count(number: int) -> None:
        calls[number] += 1

    handles = [
        model.get_submodule(part(name, number)).register_forward_pre_hook(lambda *_, number=number: count(number))
        for number in range(LAYERS)
    ]
    capture(model, TOKENS, [Site.of_point(0, "resid_pre"), Site.of_point(layer, "resid_post")])
    for handle in handles:
        handle.remove()
    assert calls == [1] * (layer + 1) + [0] * (LAYERS - layer - 1)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_no_hook_stays_behind_also_after_an_error() -> None:
    model, site = model_of("llama"), Site.of_point(1, "mlp_out")
    clean, before = logits(model), hooks(model)

    def broken(_x: Tensor) -> Tensor:
        raise ZeroDivisionError

    edits: dict[Site, Edit] = {Site.of_point(0, "resid_pre"): torch.zeros_like, site: broken}
    with pytest.raises(ZeroDivisionError), edited(model, edits):
        logits(model)
    capture(model, TOKENS, [site])
    assert hooks(model) == before
    assert torch.equal(logits(model), clean)


@family
def test_widths_are_known_without_weights(name: str) -> None:
    config = TINY[name].config()
    config._experts_implementation = "batched_mm"  # as `load_skeleton` does
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config).eval()
    module = Site.of_module(part(name, 2, "mlp"), "input")
    expected = {site: TINY[name].width(site.point, site.layer or 0) for site in sites_of(name)} | {module: D}
    assert site_widths(skeleton, list(expected)) == expected == site_widths(model_of(name), list(expected))


@family
def test_a_point_by_module_is_the_same_place(name: str) -> None:
    model, sites = model_of(name), sites_of(name)
    found = {site: by_module(model, site) for site in sites}
    got = capture(model, TOKENS, [*sites, *found.values()])
    assert all(place.layer is None and torch.equal(got[place], got[site]) for site, place in found.items())


@family
def test_a_module_by_path_is_read_and_spliced_on_either_side(name: str) -> None:
    model, path = model_of(name), part(name, 1, "mlp")
    x, y = Site.of_module(path, "input"), Site.of_module(path, "output")
    got = capture(model, TOKENS, [x, y])
    output = model.get_submodule(path)(got[x])
    assert torch.equal(output[0] if isinstance(output, tuple) else output, got[y])  # experts give their scores too
    clean = logits(model)
    for site in (x, y):
        with edited(model, {site: lambda a: a.clone()}):
            assert torch.equal(logits(model), clean)
        with edited(model, {site: torch.zeros_like}):
            assert not torch.allclose(logits(model), clean)


def test_a_module_called_with_keywords_only_is_read_and_spliced() -> None:
    model, clean = model_of("llama"), logits(model_of("llama"))
    site = Site.of_module(part("llama", 1, "self_attn"), "input")  # llama calls it as self_attn(hidden_states=...)
    normed = Site.of_module(part("llama", 1, "input_layernorm"), "output")
    got = capture(model, TOKENS, [site, normed])
    assert torch.equal(got[site], got[normed])
    with edited(model, {site: torch.zeros_like}):
        assert not torch.allclose(logits(model), clean)


@layer
@point
def test_a_name_says_its_layer_and_point_and_back(layer: int, point: str) -> None:
    site = Site.of_point(layer, point)
    assert (site.layer, site.point) == (layer, point)
    assert Site(str(site)) == site == Site.of_point(site.layer or 0, site.point)


def test_names_are_transformer_lens_names() -> None:
    assert [Site.of_point(7, point).name for point in ("resid_pre", "attn_out", "mlp_in", "mlp_post", "attn_z")] == [
        "blocks.7.hook_resid_pre",
        "blocks.7.hook_attn_out",
        "blocks.7.mlp.hook_in",
        "blocks.7.mlp.hook_post",
        "blocks.7.attn.hook_z",
    ]


def test_a_transcoders_site_is_two_points_of_a_layer() -> None:
    site = Site.of_transcoder(Site.of_point(3, "mlp_in"), "mlp_out")
    assert site.name == "blocks.3.mlp.hook_in:hook_mlp_out"
    assert (site.layer, site.point, site.is_transcoders) == (3, "mlp_in:mlp_out", True)
    assert site.places == (site.source, site.target) == (Site.of_point(3, "mlp_in"), Site.of_point(3, "mlp_out"))
    for other in (site.source, Site.of_module("blocks.3.mlp", "input"), Site("blocks.3.mlp.hook_in:hook_nothing")):
        assert (other.places, other.source, other.target) == ((other,), other, other)
        assert not other.is_transcoders


@pytest.mark.parametrize("io", ["input", "output"])
def test_a_modules_name_is_its_path_and_side(io: str) -> None:
    site = Site.of_module("blocks.1.mlp", io)  # type: ignore[arg-type]
    assert (site.name, site.layer, site.point) == (f"blocks.1.mlp:{io}", None, io)
