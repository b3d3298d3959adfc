"""SAEs in the layouts that others publish, made of known weights, and their features computed in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from gsae_ray.errors import UserError
from gsae_ray.saes import load

N, M, K, ROWS, SCALE = 6, 10, 3, 200, 4.0
Arrays = dict[str, NDArray[Any]]
Files = dict[str, Any]
"""Name -> JSON value, state dict to pickle, or tensors for safetensors or npz."""


def drawn() -> Arrays:
    """Weights of few binary digits, so that nothing is rounded: decoder norms are not 1, thresholds are touched."""
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (N, M), "b_enc": (M,), "W_dec": (M, N), "b_dec": (N,), "r_mag": (M,), "x": (ROWS, N)}
    arrays = {name: np.round(rng.normal(size=shape) * 8) / 8 for name, shape in shapes.items()}
    pre = arrays["x"] @ arrays["W_enc"] + arrays["b_enc"]
    return {**arrays, "threshold": np.maximum(pre[:M].diagonal(), 0.125), "b_gate": -pre[:M].diagonal()}


W = drawn()
X = W["x"]


def tensors(**arrays: NDArray[Any]) -> dict[str, torch.Tensor]:
    return {name.replace("__", "."): torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}


def plain(*names: str) -> dict[str, torch.Tensor]:
    return tensors(**{name: W[name] for name in names})


# ---- the functions --------------------------------------------------------------------------------------------------


def relu(x: NDArray[Any]) -> NDArray[Any]:
    return np.maximum(x, 0)


def pre(subtract: bool) -> NDArray[Any]:
    return (X - W["b_dec"] if subtract else X) @ W["W_enc"] + W["b_enc"]


def jump(z: NDArray[Any], threshold: NDArray[Any] | float) -> NDArray[Any]:
    return np.where(z > threshold, relu(z), 0)


def top(z: NDArray[Any]) -> NDArray[Any]:
    """Of equal activations any may be kept: rows that have them at the k-th place are left out of comparisons."""
    kept = np.sort(relu(z), axis=1)[:, -K, None]
    return np.where(relu(z) >= kept, relu(z), 0)


def gate(subtract: bool) -> NDArray[Any]:
    z = (X - W["b_dec"] if subtract else X) @ W["W_enc"]
    return np.where(z + W["b_gate"] > 0, relu(z * np.exp(W["r_mag"]) + W["b_enc"]), 0)


# ---- the layouts ----------------------------------------------------------------------------------------------------

LINEAR = ("W_enc", "b_enc", "W_dec", "b_dec")
TRAINER = {"layer": 1, "lm_name": "gpt2", "submodule_name": "resid_post_layer_1"}
NORMS = np.linalg.norm(W["W_dec"], axis=1)


def saelens(architecture: str, *names: str, **cfg: Any) -> Files:
    about = {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post", "model_name": "gpt2"}
    known = {"architecture": architecture, "d_in": N, "d_sae": M, "dtype": "float32", "normalize_activations": "none"}
    weights = plain(*names) if names else plain(*LINEAR)
    if "b_gate" in names:
        weights["b_mag"] = weights.pop("b_enc")
    return {"cfg.json": {**known, "metadata": about, **cfg}, "sae_weights.safetensors": weights}


def linear(b_dec: str) -> dict[str, torch.Tensor]:
    known = {"encoder__weight": W["W_enc"].T, "encoder__bias": W["b_enc"], "decoder__weight": W["W_dec"].T}
    return {**tensors(**known), b_dec: torch.tensor(W["b_dec"], dtype=torch.float32)}


def dictionary(dict_class: str, state: dict[str, torch.Tensor], **trainer: Any) -> Files:
    known = {"dict_class": dict_class, **TRAINER, **trainer}
    return {"ae.pt": state, "config.json": {"trainer": known, "buffer": {}}}


def counted(threshold: float) -> dict[str, torch.Tensor]:
    return {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(threshold)}


def dl_gated() -> dict[str, torch.Tensor]:
    biases = tensors(gate_bias=W["b_gate"], mag_bias=W["b_enc"], r_mag=W["r_mag"])
    return {**{k: t for k, t in linear("decoder_bias").items() if k != "encoder.bias"}, **biases}


def sparsify(**cfg: Any) -> Files:
    state = {**tensors(encoder__weight=W["W_enc"].T, encoder__bias=W["b_enc"]), **plain("W_dec", "b_dec")}
    known = {"activation": "topk", "expansion_factor": 32, "num_latents": M, "k": K, "d_in": N}
    return {"cfg.json": {**known, **cfg}, "sae.safetensors": state}


def gemma_scope_2(**config: Any) -> Files:
    state = {name.lower(): tensor for name, tensor in plain(*LINEAR, "threshold").items()}
    known = {"architecture": "jump_relu", "model_name": "gemma-v3-270m", "hf_hook_point_in": "model.layers.9.output"}
    return {"config.json": {**known, **config}, "params.safetensors": state}


def llama_scope(act_fn: str, norm: str = "inference", **config: Any) -> Files:
    hook = "blocks.15.hook_resid_post"
    known = {"sae_type": "sae", "d_model": N, "expansion_factor": M / N, "act_fn": act_fn, "norm_activation": norm}
    known |= {"hook_point_in": hook, "hook_point_out": hook, "sparsity_include_decoder_norm": False, "top_k": K}
    state = tensors(W_E=W["W_enc"], b_E=W["b_enc"], W_D=W["W_dec"], b_D=W["b_dec"])
    if act_fn == "jumprelu":
        state["activation_function.log_jumprelu_threshold"] = torch.tensor(W["threshold"] * 1.001).log().float()
    if norm == "dataset-wise":
        state[f"dataset_average_activation_norm.{hook}"] = torch.tensor(math.sqrt(N) / SCALE)
    return {"config.json": {**known, **config}, "sae_weights.safetensors": state}


def qwen_scope() -> dict[str, torch.Tensor]:
    return {**tensors(W_enc=W["W_enc"].T, W_dec=W["W_dec"].T), **plain("b_enc", "b_dec")}


HALF = float(np.median(W["threshold"]))
LAYOUTS: dict[str, tuple[str, Files, NDArray[Any]]] = {
    "saelens standard": ("standard", saelens("standard"), relu(pre(True))),
    "saelens standard of x": ("standard", saelens("standard", apply_b_dec_to_input=False), relu(pre(False))),
    "saelens gated": ("gated", saelens("gated", *LINEAR, "b_gate", "r_mag"), gate(True)),
    "saelens gated of x": (
        "gated",
        saelens("gated", *LINEAR, "b_gate", "r_mag", apply_b_dec_to_input=False),
        gate(False),
    ),
    "saelens jumprelu": ("jumprelu", saelens("jumprelu", *LINEAR, "threshold"), jump(pre(True), W["threshold"])),
    "saelens jumprelu of x": (
        "jumprelu",
        saelens("jumprelu", *LINEAR, "threshold", apply_b_dec_to_input=False),
        jump(pre(False), W["threshold"]),
    ),
    "saelens topk": ("topk", saelens("topk", k=K), top(pre(True))),
    "saelens topk by norms": ("topk", saelens("topk", k=K, rescale_acts_by_decoder_norm=True), top(pre(True) * NORMS)),
    "saelens 3": (
        "topk",
        {
            **saelens("standard"),
            "cfg.json": {
                "architecture": "standard",
                "d_in": N,
                "d_sae": M,
                "hook_name": "blocks.1.hook_resid_post",
                "model_name": "gpt2",
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": K},
                "normalize_activations": False,
            },
        },
        top(pre(True)),
    ),
    "AutoEncoder": ("standard", dictionary("AutoEncoder", linear("bias")), relu(pre(True)) * NORMS),
    "AutoEncoderNew": ("standard", dictionary("AutoEncoderNew", linear("decoder.bias")), relu(pre(False))),
    "GatedAutoEncoder": ("gated", dictionary("GatedAutoEncoder", dl_gated()), gate(True)),
    "GatedAutoEncoder without config.json": ("gated", {"ae.pt": dl_gated()}, gate(True)),
    "JumpReluAutoEncoder": (
        "jumprelu",
        dictionary("JumpReluAutoEncoder", plain(*LINEAR, "threshold")),
        jump(pre(False), W["threshold"]),
    ),
    "AutoEncoderTopK": (
        "topk",
        dictionary("AutoEncoderTopK", {**linear("b_dec"), **counted(-1.0)}),
        top(pre(True)),
    ),
    "AutoEncoderTopK of the first releases": (
        "topk",
        dictionary("AutoEncoderTopK", linear("b_dec"), k=K),
        top(pre(True)),
    ),
    "BatchTopKSAE": (
        "jumprelu",
        dictionary("BatchTopKSAE", {**linear("b_dec"), **counted(HALF)}),
        jump(pre(True), HALF),
    ),
    "MatryoshkaBatchTopKSAE": (
        "jumprelu",
        {"ae.pt": {**plain(*LINEAR), **counted(HALF), "group_sizes": torch.tensor([4, 6])}},
        jump(pre(True), HALF),
    ),
    "sparsify": ("topk", sparsify(), top(pre(True))),
    "gemma scope": (
        "jumprelu",
        {"params.npz": {name: W[name] for name in (*LINEAR, "threshold")}},
        jump(pre(False), W["threshold"]),
    ),
    "gemma scope 2 without config.json": (
        "jumprelu",
        {"resid_post/layer_9_width_16k_l0_small/params.safetensors": gemma_scope_2()["params.safetensors"]},
        jump(pre(False), W["threshold"]),
    ),
    "gemma scope 2": ("jumprelu", gemma_scope_2(), jump(pre(False), W["threshold"])),
    "llama scope": ("jumprelu", llama_scope("jumprelu"), jump(pre(False), W["threshold"] * 1.001)),
    "llama scope by norms": (
        "jumprelu",
        llama_scope("jumprelu", sparsity_include_decoder_norm=True),
        jump(pre(False) * NORMS, W["threshold"] * 1.001) / NORMS,
    ),
    "llama scope of normed activations": (
        "jumprelu",
        llama_scope("jumprelu", "dataset-wise"),
        jump(X * SCALE @ W["W_enc"] + W["b_enc"], W["threshold"] * 1.001) / SCALE,
    ),
    "llama scope relu": ("standard", llama_scope("relu"), relu(pre(False))),
    "llama scope topk": ("topk", llama_scope("topk"), top(pre(False))),
    "qwen scope": ("topk", {f"L0_{K}/layer7.sae.pt": qwen_scope()}, top(pre(False))),
}
"""Name -> (architecture here, files, features of X)."""


def write(folder: Path, files: Files) -> Path:
    """Writes them; the folder of the last one is the SAE's."""
    path = folder
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, bytes):
            path.write_bytes(value)
        elif path.suffix == ".json":
            path.write_text(json.dumps(value))
        elif path.suffix == ".pt":
            torch.save(value, path)
        elif path.suffix == ".npz":
            np.savez(path, **value)
        else:
            path.write_bytes(safetensors.torch.save({key: tensor.contiguous() for key, tensor in value.items()}))
    return path.parent


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ") and len(message) < 800
    return message
