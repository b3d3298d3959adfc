"""One line for a site that a model does not have, or that carries no vectors."""

from __future__ import annotations

import pytest
import torch
from tiny_models import (
    GQA,
    KV,
    LAYERS,
    LOCAL,
    SIZE,
    TINY,
    TOKENS,
    VISION,
    D,
    family,
    layer,
    model_of,
    part,
)
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3nTextConfig,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
    StableLmConfig,
)

from gsae_ray.config.site import Site
from gsae_ray.errors import UserError
from gsae_ray.language_model.families import FAMILIES
from gsae_ray.language_model.hooks import capture, check_targets, locate, site_widths


def complaint(model: nn.Module, *sites: Site) -> str:
    with pytest.raises(UserError) as error:
        site_widths(model, sites)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_family_is_named_with_the_known_ones() -> None:
    model = AutoModelForCausalLM.from_config(StableLmConfig(**KV)).eval()
    message = complaint(model, Site.of_point(0, "mlp_out"))
    assert message.startswith("sites.points: ") and "'stablelm'" in message and "sites.modules" in message
    assert all(known in message for known in FAMILIES)
    by_path = Site.of_module("model.layers.1.mlp.down_proj", "output")
    assert site_widths(model, [by_path]) == {by_path: D}  # as the message says


def test_a_family_whose_layers_do_not_add_to_one_stream_has_modules_only() -> None:
    """Gemma 3n, where a layer carries several streams."""
    sizes = {**LOCAL, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    config = Gemma3nTextConfig(
        **{**sizes, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "laurel_rank": 4},
        num_kv_shared_layers=1,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert "the points of model family 'gemma3n_text' are not known" in complaint(model, Site.of_point(1, "resid_post"))
    assert "carries [4, 1, 2, 32] for tokens [1, 2]" in complaint(model, Site.of_module("model.layers.1", "output"))
    mlp = Site.of_module("model.layers.1.mlp", "output")
    assert site_widths(model, [mlp]) == {mlp: D}


@family
@layer
def test_a_mixture_of_experts_has_no_mlp_post_and_says_so(name: str, layer: int) -> None:
    if layer not in TINY[name].dense:
        message = complaint(model_of(name), Site.of_point(layer, "mlp_post"))
        assert f"blocks.{layer}.mlp.hook_post" in message and f"layer {layer} is a mixture of experts" in message


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if not tiny.sums])
@layer
def test_what_attention_and_mlp_add_is_refused_where_a_layer_does_more_to_the_residual_stream(
    name: str, layer: int
) -> None:
    """Gemma 4: what a layer does is told by its modules, which are sites as in any model."""
    for point in ("attn_out", "mlp_out"):
        message = complaint(model_of(name), Site.of_point(layer, point))
        assert message.startswith(f"sites.points: no blocks.{layer}.hook_{point} in this {name} model")
        assert "multiplies" in message and "resid_pre, resid_post, mlp_in, mlp_post, attn_z" in message
        assert "sites.modules" in message
    norms = ["post_attention_layernorm", "post_feedforward_layernorm"]
    if name == "gemma4_text":
        norms.append("post_per_layer_input_norm")
    added = [Site.of_module(part(name, layer, norm), "output") for norm in norms]
    pre, post = Site.of_point(layer, "resid_pre"), Site.of_point(layer, "resid_post")
    x = capture(model_of(name), TOKENS, [pre, post, *added])
    torch.testing.assert_close(0.7 * sum((x[site] for site in added), x[pre]), x[post], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if not tiny.sums])
def test_a_transcoder_to_what_a_model_does_not_have_is_refused_by_its_own_key(name: str) -> None:
    targets = {"saes.1.target": [Site.of_point(1, "resid_post"), Site.of_point(1, "mlp_out")]}
    with pytest.raises(
        UserError, match=rf"^saes.1.target: no blocks.1.hook_mlp_out in this {name} model: a layer"
    ) as e:
        check_targets(model_of(name), targets)
    assert "\n" not in str(e.value)
    check_targets(model_of("llama"), targets)


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.mixer])
@pytest.mark.parametrize("point", ["attn_z", "attn_out"])
def test_a_layer_with_linear_attention_has_no_attention_points_and_says_so(name: str, point: str) -> None:
    message = complaint(model_of(name), Site.of_point(2, point))
    assert "layer 2 has no attention, so no attention output matrix W_O (it has linear_attn, " in message
    assert f"choose other layers for {point}" in message and "sites.modules" in message
    assert site_widths(model_of(name), [mixer := Site.of_module(part(name, 2, "linear_attn"), "output")]) == {mixer: D}


def test_layers_of_a_vision_tower_are_not_taken_for_those_of_the_language_model() -> None:
    """They come first in the model and are as many."""
    vision = {**VISION, "num_hidden_layers": LAYERS}
    model = AutoModelForCausalLM.from_config(Gemma3Config(text_config=LOCAL, vision_config=vision)).eval()
    first = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    assert len(first) == LAYERS and first is not model.model.language_model.layers
    del model.model.language_model.layers[1].self_attn
    assert "layer 1 has no attention" in complaint(model, Site.of_point(1, "attn_z"))


MAMBA = MambaConfig(vocab_size=64, hidden_size=D, num_hidden_layers=4)
HYBRID = JambaConfig(  # attention in layer 2 only
    **{**SIZE, "num_hidden_layers": 4}, num_key_value_heads=2, attn_layer_period=4, attn_layer_offset=2
)


@pytest.mark.parametrize("config", [MAMBA, HYBRID], ids=lambda config: config.model_type)
@pytest.mark.parametrize("point", ["attn_z", "attn_out"])
def test_a_state_space_layer_has_no_attention_output_and_says_so(config: PreTrainedConfig, point: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
    site = Site.of_point(3, point)
    message = complaint(model, site)
    assert site.name in message and "layer 3 has no attention, so no attention output matrix W_O" in message
    assert config.model_type in message and ("mamba" if config is HYBRID else "mixer") in message


def test_an_attention_layer_of_a_hybrid_model_can_be_named_by_path() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(HYBRID).eval()
    message = complaint(model, Site.of_point(2, "attn_z"))
    assert "'jamba'" in message and "sites.modules" in message and "no attention" not in message
    z = Site.of_module("model.layers.2.self_attn.o_proj", "input")
    assert locate(model, z)[0].in_features == D
    assert "'model.layers.3.self_attn.o_proj'" in complaint(
        model, Site.of_module(z.name[:-6].replace("2", "3"), "input")
    )


@family
def test_a_layer_out_of_range_is_named_with_the_range(name: str) -> None:
    message = complaint(model_of(name), Site.of_point(3, "resid_post"))
    assert message.startswith("sites.layers: 3 ") and "0 to 2" in message


def test_an_unknown_module_is_named_with_the_nearest() -> None:
    message = complaint(model_of("llama"), Site.of_module("model.layers.1.mpl", "output"))
    assert message.startswith("sites.modules: ") and "'model.layers.1.mpl'" in message
    assert "did you mean 'model.layers.1.mlp'?" in message


@pytest.mark.parametrize(
    ("name", "path", "right"),
    [
        ("gemma3", "model.layers.1.mlp", "model.language_model.layers.1.mlp"),
        ("qwen3_5_text", "model.language_model.layers.1.mlp", "model.layers.1.mlp"),
    ],
)
def test_a_module_of_the_other_class_of_a_multimodal_model_is_named_with_the_right_path(
    name: str, path: str, right: str
) -> None:
    message = complaint(model_of(name), Site.of_module(path, "output"))
    assert message == f"sites.modules: no module {path!r} in this model; did you mean {right!r}? (one of: {right})"


def test_a_module_that_text_does_not_reach_is_named() -> None:
    site = Site.of_module("model.vision_tower.encoder.layers.0", "output")
    assert "is not reached" in complaint(model_of("gemma3"), site)


@pytest.mark.parametrize("calls", [2, 4])
def test_a_module_that_a_forward_pass_calls_more_than_once_is_named_with_the_number_of_calls(calls: int) -> None:
    """As in looped models, and in those whose layers share their weights."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**GQA, "num_hidden_layers": calls + 1})).eval()
    for number in range(2, calls + 1):
        model.model.layers[number] = model.model.layers[1]
    once, path = Site.of_point(0, "resid_post"), "model.layers.1.mlp"
    assert site_widths(model, [once]) == {once: D}
    for site in (Site.of_point(1, "resid_post"), Site.of_module(path, "output"), Site.of_module(path, "input")):
        for sites in ([site], [once, site], [site, once]):
            message = complaint(model, *sites)
            assert message.startswith("sites") and f"{site.name} is called {calls} times" in message


def test_a_module_without_input_is_named() -> None:
    class Positions(nn.Module):
        def forward(self) -> Tensor:
            return torch.zeros(D)

    model = AutoModelForCausalLM.from_config(LlamaConfig(**GQA)).eval()
    model.positions = Positions()
    model.model.layers[0].register_forward_hook(lambda _module, _args, x: x + model.positions())
    assert "positions:input carries NoneType" in complaint(model, Site.of_module("positions", "input"))


@pytest.mark.parametrize(
    ("path", "io"),
    [("model.embed_tokens", "input"), ("model", "input"), ("model", "output"), ("", "output")],
)
def test_a_module_that_carries_something_else_than_a_vector_a_position_is_named(path: str, io: str) -> None:
    message = complaint(model_of("llama"), Site.of_module(path, io))  # type: ignore[arg-type]
    assert message.startswith("sites") and f"{path}:{io}" in message


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_pots", "resid_post", "model.layers.0.mlp:inside"])
def test_a_name_that_is_neither_point_nor_module_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="sites"):
        locate(model_of("llama"), Site(name))
