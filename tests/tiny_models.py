"""A tiny random model of every supported family, and where it keeps things."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from selection import quick
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4TextConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedTextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
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
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SmolLM3Config,
)

from gsae_ray.config.site import POINTS, Site
from gsae_ray.language_model.hooks import capture

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
HYBRID = {  # one layer with attention proper between two with linear attention
    **GQA,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
GLOBAL = {  # wider heads in layers with full attention
    **{**GQA, "sliding_window": 4, "global_head_dim": 24},
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}
PER_LAYER = {  # embeddings for each layer; the last one takes keys and values from the one before, its MLP is wider
    **{**GLOBAL, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64},
    **{"num_kv_shared_layers": 1, "use_double_wide_mlp": True},
}
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

VISION_4 = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "position_embedding_size": 64},
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
    z_width: int | tuple[int, ...] = 64
    mlp_width: int | tuple[int, ...] = MLP
    dense: tuple[int, ...] = tuple(range(LAYERS))
    """Layers with an MLP, the others being mixtures of experts."""
    attending: tuple[int, ...] = tuple(range(LAYERS))
    """Layers with attention, the others having the module `mixer` in its place."""
    mixer: str = ""
    pre_norm: str = "post_attention_layernorm"
    """Whose output the MLP gets; empty where it gets the residual stream itself."""
    post_norm: str = ""
    """What the MLP's output goes through before it is added; empty: nothing."""
    sums: bool = True
    """Whether what attention and MLP add is all that a layer does to the residual stream."""

    def width(self, point: str, layer: int) -> int:
        width = {"attn_z": self.z_width, "mlp_post": self.mlp_width}.get(point, D)
        return width if isinstance(width, int) else width[layer]


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
    "pre_norm": "ln_2",
}
FALCON = {
    **GPT,
    "pre_norm": "post_attention_layernorm",
    "attention": "self_attention",
    "attention_projection": "dense",
    "mlp_projection": "dense_4h_to_h",
}
FALCON_SIZE = {key: SIZE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
FALCON_SIZE |= {"bos_token_id": 1, "eos_token_id": 2}
POST_NORM: dict[str, Any] = {"post_norm": "post_feedforward_layernorm"}
OLMO: dict[str, Any] = {"pre_norm": "", **POST_NORM}
GEMMA: dict[str, Any] = {"pre_norm": "pre_feedforward_layernorm", **POST_NORM}
LINEAR = {"attending": (1,), "mixer": "linear_attn"}
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
        **{**GPT, "attention_projection": "out_proj", "mlp_projection": "fc_out", "pre_norm": "ln_1"},  # type: ignore[arg-type]
    ),
    "falcon": Tiny(
        lambda: FalconConfig(**FALCON_SIZE, parallel_attn=True),
        **{**FALCON, "pre_norm": "input_layernorm"},  # type: ignore[arg-type]
    ),
    "falcon_sequential": Tiny(lambda: FalconConfig(**FALCON_SIZE, parallel_attn=False), **FALCON),  # type: ignore[arg-type]
    "phi": Tiny(
        *(lambda: PhiConfig(**SIZE), "model.layers", "model.final_layernorm", "self_attn", "dense", "fc2", D),
        pre_norm="input_layernorm",
    ),
    "llama": Tiny(lambda: LlamaConfig(**GQA)),
    "olmo": Tiny(lambda: OlmoConfig(**KV), z_width=D),
    "phi3": Tiny(lambda: Phi3Config(**KV), z_width=D),
    "smollm3": Tiny(lambda: SmolLM3Config(**KV), z_width=D),
    "olmo2": Tiny(lambda: Olmo2Config(**KV), z_width=D, **OLMO),
    "olmo3": Tiny(lambda: Olmo3Config(**KV, sliding_window=4, layer_types=LOCAL["layer_types"]), z_width=D, **OLMO),
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
    "gemma2": Tiny(lambda: Gemma2Config(**LOCAL), **GEMMA),
    "gemma3_text": Tiny(lambda: Gemma3TextConfig(**LOCAL), **GEMMA),
    "gemma3": Tiny(
        lambda: Gemma3Config(text_config=LOCAL, vision_config=VISION, mm_tokens_per_image=4),
        "model.language_model.layers",
        "model.language_model.norm",
        **GEMMA,
    ),
    "qwen3_next": Tiny(
        lambda: Qwen3NextConfig(**HYBRID, **EXPERTS, shared_expert_intermediate_size=24, mlp_only_layers=[1]),
        dense=(1,),
        **LINEAR,  # type: ignore[arg-type]
    ),
    "qwen3_5_text": Tiny(lambda: Qwen3_5TextConfig(**HYBRID), **LINEAR),  # type: ignore[arg-type]
    "qwen3_5_moe_text": Tiny(
        lambda: Qwen3_5MoeTextConfig(**HYBRID, **EXPERTS, shared_expert_intermediate_size=24),
        dense=(),
        **LINEAR,  # type: ignore[arg-type]
    ),
    "gemma4_text": Tiny(
        lambda: Gemma4TextConfig(**PER_LAYER), z_width=(64, 96, 96), mlp_width=(MLP, MLP, 2 * MLP), sums=False, **GEMMA
    ),
    "gemma4": Tiny(  # experts beside the MLP
        lambda: Gemma4Config(
            text_config={
                **{**GLOBAL, "hidden_size_per_layer_input": 0, "enable_moe_block": True},
                **{"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
            },
            vision_config=VISION_4,
        ),
        "model.language_model.layers",
        "model.language_model.norm",
        z_width=(64, 96, 96),
        sums=False,
        **GEMMA,
    ),
    "gemma4_unified_text": Tiny(lambda: Gemma4UnifiedTextConfig(**GLOBAL), z_width=(64, 96, 96), sums=False, **GEMMA),
    "gemma4_unified": Tiny(
        lambda: Gemma4UnifiedConfig(text_config=GLOBAL),
        "model.language_model.layers",
        "model.language_model.norm",
        z_width=(64, 96, 96),
        sums=False,
        **GEMMA,
    ),
}
TOKENS = torch.arange(3, 23).reshape(2, 10)


COMMON = (
    "gpt_neox",
    "gpt2",
    "llama",
    "mistral",
    "olmo2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3",
    "qwen3_next",
    "gpt_oss",
)
"""Families of the quick suite: those that most SAEs are of, and of each kind of layer one."""
family = pytest.mark.parametrize("name", quick(TINY, lambda name: name in COMMON))
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
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("layer_scalar"):  # of Gemma 4; 1 in a model that was not trained
            buffer.fill_(0.7)
    return model.eval().requires_grad_(False)


def layers_with(name: str, point: str) -> tuple[int, ...]:
    tiny = TINY[name]
    if point in ("attn_out", "mlp_out") and not tiny.sums:
        return ()
    if point in ("attn_out", "attn_z"):
        return tiny.attending
    return tiny.dense if point == "mlp_post" else tuple(range(LAYERS))


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
