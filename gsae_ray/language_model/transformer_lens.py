"""Checkpoints in TransformerLens' own format, such as NeelNanda/GELU_1L512W_C4_Code, as GPT-2 of transformers.

Such a checkpoint is a `config.json` in TransformerLens' words and a state dict `*final.pth`, its LayerNorms not folded.
GPT-2 computes the same function, but for its unembedding, which has no bias; so every site of that family works.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from gsae_ray.errors import UserError

WEIGHTS = "*final.pth"
"""Pattern of the name of the file of weights; published repositories hold checkpoints of training beside it."""

_ACTIVATIONS = ("gelu", "gelu_new", "relu")  # called the same in both libraries; gelu is the exact one
_ONLY: dict[str, Any] = {
    "normalization": "LN",  # older configurations' word for it
    "normalization_type": "LN",
    "positional_embedding_type": "standard",
    "shortformer_pos": False,
    "attn_only": False,
    "attention_dir": "causal",
    "use_attn_scale": True,
    "use_local_attn": False,
    "use_qk_norm": False,
    "use_logn_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "n_key_value_heads": None,
    "gated_mlp": False,
    "num_experts": None,
    "parallel_attn_mlp": False,
    "final_rms": False,
    "uses_rms_norm": False,
    "post_embedding_ln": False,
    "use_normalization_before_and_after": False,
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
}
"""Key of a TransformerLens configuration -> its only value, where the key is given, that makes a GPT-2."""


class TransformerLensConfig(GPT2Config):
    """GPT-2's configuration for a TransformerLens checkpoint, with the checkpoint's `tokenizer_name`."""


class TransformerLensModel(GPT2LMHeadModel):
    """GPT-2 whose unembedding has weights of its own and a bias."""

    config_class = TransformerLensConfig

    def __init__(self, config: TransformerLensConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)


def is_transformer_lens(values: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is TransformerLens': it names no model type, and sizes in TransformerLens' words."""
    return "model_type" not in values and values.keys() >= {"d_model", "n_ctx"}


def gpt2_config(name: str, values: Mapping[str, Any]) -> TransformerLensConfig:
    """The configuration of checkpoint `name` in transformers' words.

    Raises:
        UserError: a key is missing, or says something that GPT-2 does not compute.
    """

    def of(key: str) -> Any:
        if key not in values:
            raise UserError(f"model.name: the TransformerLens configuration of {name!r} lacks {key!r}")
        return values[key]

    def refuse(what: str, supported: str) -> None:
        raise UserError(f"model.name: the TransformerLens checkpoint {name!r} has {what}; supported: {supported}")

    normalization = "normalization" if "normalization" in values else "normalization_type"
    for key, only in _ONLY.items():
        value = of(key) if key == normalization else values.get(key, only)
        if value != only:
            refuse(f"{key} {value!r}", repr(only))
    if of("act_fn") not in _ACTIVATIONS:
        refuse(f"act_fn {values['act_fn']!r}", ", ".join(_ACTIVATIONS))
    if of("n_heads") * of("d_head") != of("d_model"):
        refuse(f"n_heads × d_head = {values['n_heads'] * values['d_head']}", f"d_model = {values['d_model']}")
    if values.get("d_vocab_out", of("d_vocab")) not in (-1, values["d_vocab"]):  # -1: as d_vocab
        refuse(f"d_vocab_out {values['d_vocab_out']}", f"d_vocab = {values['d_vocab']}")
    scale = values["d_head"] ** 0.5
    if abs(values.get("attn_scale", scale) - scale) > 1e-6 and values["attn_scale"] != -1:  # -1: √d_head
        refuse(f"attn_scale {values['attn_scale']}", "√d_head")
    return TransformerLensConfig(
        vocab_size=of("d_vocab"),
        n_positions=of("n_ctx"),
        n_embd=of("d_model"),
        n_layer=of("n_layers"),
        n_head=of("n_heads"),
        n_inner=of("d_mlp"),
        activation_function=of("act_fn"),
        layer_norm_epsilon=values.get("eps", values.get("ln_eps", 1e-5)),
        tie_word_embeddings=False,
        bos_token_id=None,  # the tokenizer says
        eos_token_id=None,
        tokenizer_name=values.get("tokenizer_name"),
    )


def read_weights(name: str, path: Path, config: TransformerLensConfig) -> dict[str, Tensor]:
    """The state dict of `TransformerLensModel`, from a checkpoint's file. Tensors only: code in the file is not run.

    Raises:
        UserError: the file is not such a state dict, or its weights are not those of `config`.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = "is not a file of tensors only, and nothing else is read from a pickle"
        raise UserError(f"model.name: {path.name} of {name!r} {reason}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"model.name: {path.name} of {name!r} is not a state dict of tensors")
    d, heads, mlp = config.n_embd, config.n_head, config.n_inner
    d_head = d // heads

    def take(key: str, *shape: int) -> Tensor:
        tensor = weights.pop(key, None)
        if tensor is None or tuple(tensor.shape) != shape:
            what = "is missing" if tensor is None else f"has shape {list(tensor.shape)}, not {list(shape)}"
            raise UserError(f"model.name: {name!r}: {key} {what} in {path.name}")
        return tensor

    new = {
        "transformer.wte.weight": take("embed.W_E", config.vocab_size, d),
        "transformer.wpe.weight": take("pos_embed.W_pos", config.n_positions, d),
        "transformer.ln_f.weight": take("ln_final.w", d),
        "transformer.ln_f.bias": take("ln_final.b", d),
        "lm_head.weight": take("unembed.W_U", d, config.vocab_size).T,
        "lm_head.bias": take("unembed.b_U", config.vocab_size),
    }
    for layer in range(config.n_layer):
        old, block = f"blocks.{layer}", f"transformer.h.{layer}"
        for number in (1, 2):
            new[f"{block}.ln_{number}.weight"] = take(f"{old}.ln{number}.w", d)
            new[f"{block}.ln_{number}.bias"] = take(f"{old}.ln{number}.b", d)
        # TransformerLens: [head, d_model, d_head]. GPT-2's Conv1D: [in, out], the heads side by side, then Q, K, V.
        qkv = [take(f"{old}.attn.W_{x}", heads, d, d_head).permute(1, 0, 2).reshape(d, d) for x in "QKV"]
        new[f"{block}.attn.c_attn.weight"] = torch.cat(qkv, dim=1)
        biases = [take(f"{old}.attn.b_{x}", heads, d_head).reshape(d) for x in "QKV"]
        new[f"{block}.attn.c_attn.bias"] = torch.cat(biases)
        new[f"{block}.attn.c_proj.weight"] = take(f"{old}.attn.W_O", heads, d_head, d).reshape(d, d)
        new[f"{block}.attn.c_proj.bias"] = take(f"{old}.attn.b_O", d)
        new[f"{block}.mlp.c_fc.weight"] = take(f"{old}.mlp.W_in", d, mlp)
        new[f"{block}.mlp.c_fc.bias"] = take(f"{old}.mlp.b_in", mlp)
        new[f"{block}.mlp.c_proj.weight"] = take(f"{old}.mlp.W_out", mlp, d)
        new[f"{block}.mlp.c_proj.bias"] = take(f"{old}.mlp.b_out", d)
    left = [key for key in weights if not key.endswith((".attn.mask", ".attn.IGNORE"))]  # the causal mask, as buffers
    if left:
        raise UserError(f"model.name: {name!r}: {left[0]} in {path.name} has no place in such a model")
    return {key: tensor.contiguous() for key, tensor in new.items()}
