"""Decoder families: which modules of a layer stand for each point.

`mlp_out` and `attn_out` are *what is added to the residual stream* (after the post-norms of Gemma 2/3 and OLMo 2/3), so
that resid_pre + attn_out + mlp_out = resid_post. A family that does more to the stream, outside of these modules, has
neither point (Gemma 4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gsae_ray.config.site import IO


@dataclasses.dataclass(frozen=True)
class Family:
    """Where a decoder family keeps its layers, and the modules of a layer that stand for each point.

    A point is (module path inside the layer, "input" or "output"); the empty path is the layer itself.
    """

    layers: tuple[str, ...]
    points: Mapping[str, tuple[str, IO]]
    besides: str = ""
    """What else a layer does to the residual stream, in words; then there is neither attn_out nor mlp_out."""


def _family(layers: str | tuple[str, ...], attn_out: str, mlp_out: str, mlp_post: str, attn_z: str) -> Family:
    """A family, by module paths inside a layer: whose outputs are attn_out and mlp_out, whose inputs the last two.

    The MLP itself is called `mlp` in all of them.
    """
    points: dict[str, tuple[str, IO]] = {
        "resid_pre": ("", "input"),
        "resid_post": ("", "output"),
        "attn_out": (attn_out, "output"),
        "mlp_in": ("mlp", "input"),
        "mlp_out": (mlp_out, "output"),
        "mlp_post": (mlp_post, "input"),
        "attn_z": (attn_z, "input"),
    }
    return Family((layers,) if isinstance(layers, str) else layers, points)


_LLAMA = _family("model.layers", "self_attn", "mlp", "mlp.down_proj", "self_attn.o_proj")
_TEXT_OR_MULTIMODAL = ("model.layers", "model.language_model.layers")  # gemma3 checkpoints load as the latter class
_POST_NORMS = _family(
    _TEXT_OR_MULTIMODAL,
    "post_attention_layernorm",
    "post_feedforward_layernorm",
    "mlp.down_proj",
    "self_attn.o_proj",
)
_GEMMA4 = Family(
    _TEXT_OR_MULTIMODAL,
    {point: place for point, place in _POST_NORMS.points.items() if point not in ("attn_out", "mlp_out")},
    besides="multiplies its sum by a scalar and, in some models, adds embeddings of its own",
)
FAMILIES: dict[str, Family] = {
    "gpt_neox": _family("gpt_neox.layers", "attention", "mlp", "mlp.dense_4h_to_h", "attention.dense"),
    "gpt2": _family("transformer.h", "attn", "mlp", "mlp.c_proj", "attn.c_proj"),
    "gpt_neo": _family("transformer.h", "attn", "mlp", "mlp.c_proj", "attn.attention.out_proj"),
    "gptj": _family("transformer.h", "attn", "mlp", "mlp.fc_out", "attn.out_proj"),
    "falcon": _family("transformer.h", "self_attention", "mlp", "mlp.dense_4h_to_h", "self_attention.dense"),
    "phi": _family("model.layers", "self_attn", "mlp", "mlp.fc2", "self_attn.dense"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo", "phi3", "smollm3"), _LLAMA),
    # Mixtures of experts: mlp_post in their dense layers only.
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v2", "deepseek_v3"), _LLAMA),
    # Most of their layers have linear attention in attention's place: attn_out and attn_z in the others only, attn_z
    # after its gate.
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3"), _POST_NORMS),
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), _GEMMA4),
}
"""Hugging Face `model_type` -> its family."""
