"""Sites mean the same thing in every supported family: tiny random models, every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
)

from gsae_ray.config.site import POINTS, Site
from gsae_ray.errors import UserError
from gsae_ray.language_model.families import FAMILIES
from gsae_ray.language_model.hooks import Edit, capture, edited, locate, site_widths

D, LAYERS, MLP = 32, 3, 48
SIZE = {
    "vocab_size": 64,
    "hidden_size": D,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = {**SIZE, "num_key_value_heads": 2, "head_dim": 16}  # heads x head_dim = 64, not d_model
# Contexts of the tests are longer than the window.
LOCAL = {**GQA, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
KV = {**SIZE, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {  # attention by way of latent vectors, experts from layer 1 on
    **{**SIZE, "num_key_value_heads": 4},
    **{"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Where a family keeps things, written down here a second time."""

    config: Callable[[], PreTrainedConfig]
    layers: str = "model.layers"
    norm: str = "model.norm"
    attention: str = "self_attn"
    attention_projection: str = "o_proj"
    mlp_projection: str = "down_proj"
    z_width: int = 64
    mlp_width: int = MLP
    dense: tuple[int, ...] = tuple(range(LAYERS))
    """Layers with an MLP, the others being mixtures of experts."""


NEOX = {
    "layers": "gpt_neox.layers",
    "norm": "gpt_neox.final_layer_norm",
    "attention": "attention",
    "attention_projection": "dense",
    "mlp_projection": "dense_4h_to_h",
    "z_width": D,
}
GPT = {
    "layers": "transformer.h",
    "norm": "transformer.ln_f",
    "attention": "attn",
    "z_width": D,
    "mlp_width": 4 * D,
}
FALCON = {
    **GPT,
    "attention": "self_attention",
    "attention_projection": "dense",
    "mlp_projection": "dense_4h_to_h",
}
FALCON_SIZE = {key: SIZE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
FALCON_SIZE |= {"bos_token_id": 1, "eos_token_id": 2}
TINY = {
    "gpt_neox": Tiny(lambda: GPTNeoXConfig(**SIZE, use_parallel_residual=True), **NEOX),  # type: ignore[arg-type]
    "gpt_neox_sequential": Tiny(lambda: GPTNeoXConfig(**SIZE, use_parallel_residual=False), **NEOX),  # type: ignore[arg-type]
    "gpt2": Tiny(
        lambda: GPT2Config(
            vocab_size=64, n_positions=64, n_embd=D, n_layer=LAYERS, n_head=4, bos_token_id=1, eos_token_id=2
        ),
        **{**GPT, "attention_projection": "c_proj", "mlp_projection": "c_proj"},  # type: ignore[arg-type]
    ),
    "gpt_neo": Tiny(
        lambda: GPTNeoConfig(
            **{"vocab_size": 64, "max_position_embeddings": 64, "hidden_size": D, "num_layers": LAYERS, "num_heads": 4},
            **{"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
            **{"bos_token_id": 1, "eos_token_id": 2},
        ),
        **{**GPT, "attention_projection": "attention.out_proj", "mlp_projection": "c_proj"},  # type: ignore[arg-type]
    ),
    "gptj": Tiny(
        lambda: GPTJConfig(
            **{"vocab_size": 64, "n_positions": 64, "n_embd": D, "n_layer": LAYERS, "n_head": 4, "rotary_dim": 4},
            **{"bos_token_id": 1, "eos_token_id": 2},
        ),
        **{**GPT, "attention_projection": "out_proj", "mlp_projection": "fc_out"},  # type: ignore[arg-type]
    ),
    "falcon": Tiny(lambda: FalconConfig(**FALCON_SIZE, parallel_attn=True), **FALCON),  # type: ignore[arg-type]
    "falcon_sequential": Tiny(lambda: FalconConfig(**FALCON_SIZE, parallel_attn=False), **FALCON),  # type: ignore[arg-type]
    "phi": Tiny(lambda: PhiConfig(**SIZE), "model.layers", "model.final_layernorm", "self_attn", "dense", "fc2", D),
    "llama": Tiny(lambda: LlamaConfig(**GQA)),
    "olmo": Tiny(lambda: OlmoConfig(**KV), z_width=D),
    "phi3": Tiny(lambda: Phi3Config(**KV), z_width=D),
    "smollm3": Tiny(lambda: SmolLM3Config(**KV), z_width=D),
    "olmo2": Tiny(lambda: Olmo2Config(**KV), z_width=D),
    "olmo3": Tiny(lambda: Olmo3Config(**KV, sliding_window=4, layer_types=LOCAL["layer_types"]), z_width=D),
    "mixtral": Tiny(lambda: MixtralConfig(**GQA, num_local_experts=4), dense=()),
    "qwen2_moe": Tiny(
        lambda: Qwen2MoeConfig(**KV, **EXPERTS, shared_expert_intermediate_size=24, mlp_only_layers=[1]),
        z_width=D,
        dense=(1,),
    ),
    "qwen3_moe": Tiny(lambda: Qwen3MoeConfig(**GQA, **EXPERTS), dense=()),
    "olmoe": Tiny(lambda: OlmoeConfig(**KV, num_experts=4, num_experts_per_tok=2), z_width=D, dense=()),
    "gpt_oss": Tiny(lambda: GptOssConfig(**LOCAL, num_local_experts=4, num_experts_per_tok=2), dense=()),
    "deepseek_v2": Tiny(lambda: DeepseekV2Config(**LATENT, q_lora_rank=None), dense=(0,)),
    "deepseek_v3": Tiny(lambda: DeepseekV3Config(**LATENT, q_lora_rank=16), dense=(0,)),
    "mistral": Tiny(lambda: MistralConfig(**GQA, sliding_window=4)),
    "qwen2": Tiny(lambda: Qwen2Config(**GQA)),
    "qwen3": Tiny(lambda: Qwen3Config(**GQA)),
    "gemma": Tiny(lambda: GemmaConfig(**GQA)),
    "gemma2": Tiny(lambda: Gemma2Config(**LOCAL)),
    "gemma3_text": Tiny(lambda: Gemma3TextConfig(**LOCAL)),
    "gemma3": Tiny(
        lambda: Gemma3Config(text_config=LOCAL, vision_config=VISION, mm_tokens_per_image=4),
        "model.language_model.layers",
        "model.language_model.norm",
    ),
}
TOKENS = torch.arange(3, 23).reshape(2, 10)

family = pytest.mark.parametrize("name", TINY)
layer = pytest.mark.parametrize("layer", range(LAYERS))
point = pytest.mark.parametrize("point", POINTS)


@cache
def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY[name].config())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
        else:  # norms and biases, the post-norms of Gemma too
            parameter.data.add_(torch.randn_like(parameter), alpha=0.5)
    return model.eval().requires_grad_(False)


def layers_with(name: str, point: str) -> tuple[int, ...]:
    return TINY[name].dense if point == "mlp_post" else tuple(range(LAYERS))


def sites_of(name: str) -> list[Site]:
    return [Site.of_point(layer, point) for point in POINTS for layer in layers_with(name, point)]


@cache
def activations_of(name: str) -> dict[Site, Tensor]:
    return capture(model_of(name), TOKENS, sites_of(name))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def part(name: str, layer: int, path: str = "") -> str:
    return ".".join(filter(None, (TINY[name].layers, str(layer), path)))


def test_every_family_of_the_table_is_tested() -> None:
    assert {model_of(name).config.model_type for name in TINY} == set(FAMILIES)


@family
@layer
def test_what_is_added_to_the_residual_stream_sums_to_its_change(name: str, layer: int) -> None:
    points = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    x = {point: activations_of(name)[Site.of_point(layer, point)] for point in points}
    for added in ("attn_out", "mlp_out"):
        assert x[added].norm() > 0.01 * x["resid_pre"].norm()  # else the sum would say little
    torch.testing.assert_close(x["resid_pre"] + x["attn_out"] + x["mlp_out"], x["resid_post"], rtol=1e-5, atol=1e-4)


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
    attention = part(name, layer, tiny.attention)
    z = activations_of(name)[Site.of_point(layer, "attn_z")]
    assert z.shape == (*TOKENS.shape, tiny.z_width)
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
    assert neurons.shape == (*TOKENS.shape, tiny.mlp_width)
    output = Site.of_module(mlp, "output")
    assert torch.equal(
        model.get_submodule(f"{mlp}.{tiny.mlp_projection}")(neurons), capture(model, TOKENS, [output])[output]
    )


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
    with edited(model, {Site.of_point(1, "attn_out"): torch.zeros_like}):
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
    capture(model, TOKENS, [Site.of_point(0, "mlp_out"), Site.of_point(layer, "resid_post")])
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
    own = {"attn_z": TINY[name].z_width, "mlp_post": TINY[name].mlp_width}
    module = Site.of_module(part(name, 2, "mlp"), "input")
    expected = {site: own.get(site.point, D) for site in sites_of(name)} | {module: D}
    assert site_widths(skeleton, list(expected)) == expected == site_widths(model_of(name), list(expected))


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
    assert [Site.of_point(7, point).name for point in ("resid_pre", "attn_out", "mlp_post", "attn_z")] == [
        "blocks.7.hook_resid_pre",
        "blocks.7.hook_attn_out",
        "blocks.7.mlp.hook_post",
        "blocks.7.attn.hook_z",
    ]


@pytest.mark.parametrize("io", ["input", "output"])
def test_a_modules_name_is_its_path_and_side(io: str) -> None:
    site = Site.of_module("blocks.1.mlp", io)  # type: ignore[arg-type]
    assert (site.name, site.layer, site.point) == (f"blocks.1.mlp:{io}", None, io)


# ---- errors ---------------------------------------------------------------------------------------------------------


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


@family
@layer
def test_a_mixture_of_experts_has_no_mlp_post_and_says_so(name: str, layer: int) -> None:
    if layer not in TINY[name].dense:
        message = complaint(model_of(name), Site.of_point(layer, "mlp_post"))
        assert f"blocks.{layer}.mlp.hook_post" in message and f"layer {layer} is a mixture of experts" in message


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
