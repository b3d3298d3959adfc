"""What is no SAE, another function or damaged in the layouts of others is one line that names it; code is not run."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from public_layouts import (
    LAYOUTS,
    LINEAR,
    Files,
    M,
    N,
    W,
    counted,
    dictionary,
    gemma_scope_2,
    linear,
    llama_scope,
    qwen_scope,
    refusal,
    saelens,
    sparsify,
    write,
)

from gsae_ray.errors import UserError
from gsae_ray.saes import load


def with_cfg(files: Files, **changes: Any) -> Files:
    name = next(name for name in files if name.endswith(".json"))
    return {**files, name: {k: v for k, v in {**files[name], **changes}.items() if v is not ...}}


def with_tensors(files: Files, **changes: Any) -> Files:
    name = next(name for name in files if not name.endswith(".json"))
    new = {key.replace("__", "."): value for key, value in changes.items()}
    return {**files, name: {k: v for k, v in {**files[name], **new}.items() if v is not ...}}


STANDARD = saelens("standard")
PARAMS = {name: W[name] for name in (*LINEAR, "threshold")}
AE = dictionary("AutoEncoder", linear("bias"))
REFUSED: dict[str, tuple[Files, str]] = {
    "average": (
        with_cfg(STANDARD, normalize_activations="expected_average_only_in"),
        "scale of its activations is not",
    ),
    "average, before 6": (with_cfg(STANDARD, normalize_activations=True), "'expected_average_only_in'"),
    "layer norm": (with_cfg(STANDARD, normalize_activations="layer_norm"), "layer_norm': each row is normalised"),
    "row norms": (with_cfg(STANDARD, normalize_activations="constant_norm_rescale"), "each row is divided by its norm"),
    "transcoder with b_dec subtracted": (
        with_cfg(STANDARD, architecture="transcoder", d_out=N),
        "apply_b_dec_to_input is not false, which SAELens refuses of a transcoder",
    ),
    "transcoder without d_out": (
        with_cfg(STANDARD, architecture="transcoder", apply_b_dec_to_input=False),
        f"d_out is None, but sae_weights.safetensors has {N}",
    ),
    "skip transcoder without W_skip": (
        with_cfg(STANDARD, architecture="skip_transcoder", d_out=N, apply_b_dec_to_input=False),
        "W_skip is missing",
    ),
    "abstopk": (with_cfg(STANDARD, architecture="abstopk", k=3), "'abstopk': its features may be negative"),
    "batchtopk in training": (
        with_cfg(STANDARD, architecture="batchtopk"),
        "'batchtopk': a training checkpoint of SAEL",
    ),
    "matching pursuit": (with_cfg(STANDARD, architecture="matching_pursuit"), "'matching_pursuit': its encoder is a "),
    "temporal": (with_cfg(STANDARD, architecture="temporal"), "'temporal': its features depend on earlier positions"),
    "one head": (
        with_cfg(STANDARD, metadata={"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 3}),
        "hook_head_index is 3: an SAE of one head",
    ),
    "one head, before 6": (with_cfg(STANDARD, metadata=..., hook_point_head_index=0), "hook_head_index is 0: an SAE"),
    "reshaping": (with_cfg(STANDARD, reshape_activations="heads"), "reshape_activations is 'heads'; known: 'none',"),
    "W_skip": (with_tensors(STANDARD, W_skip=torch.zeros(N, N)), "'W_skip' is no tensor of this architecture"),
    "other architecture": (with_cfg(STANDARD, architecture="gated"), "b_gate is missing"),
    "d_in": (with_cfg(STANDARD, d_in=7), f"d_in is 7, but sae_weights.safetensors has {N}"),
    "k": (saelens("topk"), "k: None: "),
    "large k": (saelens("topk", k=11), "k: 11 is more than the 10 features"),
    "architecture": (with_cfg(STANDARD, architecture=["gated"]), "architecture ['gated'] is not known"),
    "surrogate": ({**STANDARD, "cfg.json": b'{"d_in": 5, "d_sae": 10, "model": "\\ud800"}'}, "cfg.json: "),
    "zero column": (with_tensors(AE, decoder__weight=torch.eye(N, M)), "direction in the decoder is zero"),
    "sparse": (with_tensors(AE, decoder__weight=torch.ones(N, M).to_sparse()), "'decoder.weight' is no dense tensor"),
    "infinite threshold": (
        with_tensors(
            llama_scope("jumprelu"),
            **{"activation_function.log_jumprelu_threshold": torch.full((M,), 1000.0)},
        ),
        "threshold is not finite once it takes raw activations",
    ),
    "flag": (with_cfg(STANDARD, apply_b_dec_to_input="no"), "apply_b_dec_to_input is 'no'"),
    "shape": (with_tensors(STANDARD, b_enc=torch.zeros(11)), "b_enc is [11], not [10]"),
    "axes": (with_tensors(STANDARD, W_enc=torch.zeros(10)), "W_enc is [10], not [D, F]"),
    "NaN": (with_tensors(STANDARD, b_enc=torch.full((M,), math.nan)), "b_enc is not finite"),
    "large float64": (
        with_tensors(STANDARD, b_enc=torch.full((M,), 1e300, dtype=torch.float64)),
        "b_enc is not finite",
    ),
    "integers": (with_tensors(STANDARD, b_enc=torch.zeros(M, dtype=torch.int64)), "b_enc is torch.int64"),
    "scaling factor": (with_tensors(STANDARD, scaling_factor=torch.full((M,), 2.0)), "'scaling_factor' is no tensor"),
    "no safetensors": ({**STANDARD, "sae_weights.safetensors": b"none"}, "sae_weights.safetensors cannot be read"),
    "JSON": ({**STANDARD, "cfg.json": b"{"}, "cfg.json"),
    "dict_class": (dictionary("IdentityDict", linear("bias")), "unknown dict_class 'IdentityDict'; "),
    "dict_class of another type": (with_cfg(AE, trainer={"dict_class": [1]}), "unknown dict_class [1]"),
    "another class": (dictionary("GatedAutoEncoder", linear("bias")), "gate_bias is missing"),
    "another library": ({**AE, "config.json": {"architectures": ["GPT2"]}}, "no trainer.dict_class"),
    "no trainer": (with_cfg(AE, trainer=1), "no trainer.dict_class"),
    "which of two": (
        {"ae.pt": {**linear("b_dec"), **counted(1.0)}},
        "may be of AutoEncoderTopK or BatchTopKSAE",
    ),
    "none": ({"ae.pt": {"weight": torch.zeros(3)}}, "are of none that we know"),
    "no k": (dictionary("AutoEncoderTopK", {**linear("b_dec"), "threshold": torch.tensor(-1.0)}), "k is missing"),
    "threshold": (
        dictionary("BatchTopKSAE", {**linear("b_dec"), **counted(-1.0)}),
        "threshold is -1: it was not learnt yet",
    ),
    "list": ({**AE, "ae.pt": [torch.zeros(3)]}, "ae.pt is not a state dict"),
    "object": ({**AE, "ae.pt": {"bias": "text"}}, "ae.pt is not a state dict"),
    "groupmax": (sparsify(activation="groupmax"), "activation is 'groupmax'; known: 'topk'"),
    "skip connection": (sparsify(skip_connection=True), "skip_connection is true: an SAE that adds W_skip x"),
    "sparsify's transcoder": (sparsify(transcode=True, skip_connection=True), "W_skip is missing"),
    "sparsify without k": (with_cfg(sparsify(), k=...), "k is missing"),
    "sparsify's d_in": (sparsify(d_in=7), f"d_in is 7; sae.safetensors has {N}"),
    "npz of objects": ({"params.npz": {"W_enc": np.array([{}], dtype=object)}}, "params.npz is not a file of arrays"),
    "no npz": ({"params.npz": b"PK none"}, "params.npz is not a file of arrays"),
    "npz of text": ({"params.npz": {"W_enc": np.array(["a"])}}, "params.npz is not a file of arrays"),
    "npz without threshold": ({"params.npz": {name: W[name] for name in LINEAR}}, "threshold is missing"),
    "gemma transcoder": (gemma_scope_2(hf_hook_point_out="model.layers.9.mlp.output"), "this is a transcoder"),
    "gemma skip": (with_tensors(gemma_scope_2(), affine_skip_connection=torch.zeros(N, N)), "this is a transcoder"),
    "gemma architecture": (gemma_scope_2(architecture="topk"), "architecture is 'topk'; known: 'jump_relu'"),
    "llama scope, before": (
        with_tensors(llama_scope("relu"), encoder__weight=torch.zeros(M, N)),
        "is of a layout before",
    ),
    "GLU": (llama_scope("relu", use_glu_encoder=True), "use_glu_encoder is True"),
    "batch": (llama_scope("batchtopk"), "act_fn is 'batchtopk'; known: 'relu', 'jumprelu', 'topk'"),
    "token norms": (llama_scope("relu", "token-wise"), "norm_activation is 'token-wise'"),
    "llama transcoder": (llama_scope("relu", hook_point_out="blocks.15.hook_mlp_out"), "a transcoder, not an SAE"),
    "no norm": (with_cfg(llama_scope("relu"), norm_activation="dataset-wise"), "is missing, or no positive number"),
    "top of norms": (llama_scope("topk", sparsity_include_decoder_norm=True), "decoder norms other than 1"),
    "no k in the path": ({"layer7.sae.pt": qwen_scope()}, "layer7.sae.pt has no k"),
    "k of a folder above": ({"L0_3/saes/layer7.sae.pt": qwen_scope()}, "layer7.sae.pt has no k; it is taken from the"),
    "two k": ({"L0_3-L0_5/layer7.sae.pt": qwen_scope()}, "layer7.sae.pt has no k"),
    "gemma transcoder by name": (
        {"gemma-scope-2b-pt-transcoders/layer_20/width_16k/average_l0_71/params.npz": PARAMS},
        "it lies in 'gemma-scope-2b-pt-transcoders': this is a transcoder, not an SAE",
    ),
    "gemma transcoder in the hub's cache": (
        {"models--google--gemma-scope-2b-pt-transcoders/snapshots/af01/layer_2/width_16k/l0/params.npz": PARAMS},
        "this is a transcoder, not an SAE",
    ),
    "gemma embeddings": (
        {"gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6/params.npz": PARAMS},
        "it lies in embedding: an SAE of embeddings before their scaling",
    ),
    "gemma 2 transcoder by name": (
        {"transcoder_all/layer_12_width_16k_l0_small/params.safetensors": gemma_scope_2()["params.safetensors"]},
        "it lies in 'transcoder_all/layer_12_width_16k_l0_small': this is a transcoder",
    ),
    "signed": (sparsify(signed=True), "signed is true: its features may be negative"),
    "k of another type": (
        dictionary("AutoEncoderTopK", {**linear("b_dec")}, k=10**30),
        "k is missing, or no whole number",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    files, named = REFUSED[kind]
    assert named in refusal(write(tmp_path, files))


def test_a_file_in_place_of_its_folder_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, STANDARD)
    for name in STANDARD:
        assert refusal(folder / name).endswith("this is a file; give the folder that it lies in")


def test_a_configuration_that_is_no_json_is_named_in_each_format_and_a_format_of_others_is_not_ours(
    tmp_path: Path,
) -> None:
    damaged = write(tmp_path / "a", {**sparsify(), "cfg.json": b"{"})
    assert "this SAE cannot be read: cfg.json: " in refusal(damaged)
    assert load(write(tmp_path / "b", with_cfg(sparsify(), format="safetensors"))).architecture == "topk"
    assert load(write(tmp_path / "c", with_cfg(STANDARD, format=2))).cfg.metadata["origin"] == "saelens"
    assert "cfg.json.format: 'gsae-9' is not gsae-1" in refusal(
        write(tmp_path / "d", with_cfg(STANDARD, format="gsae-9"))
    )


@pytest.mark.parametrize("name", ["ae.pt", "L0_3/layer7.sae.pt"])
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_never_run(name: str, save: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / name).parent.mkdir(exist_ok=True)
    save({**linear("bias"), "bomb": Bomb()}, tmp_path / name)
    assert "is not a file of tensors only" in refusal((tmp_path / name).parent)
    assert not (tmp_path / "ran").exists()


DAMAGED = ("saelens gated", "AutoEncoderTopK", "sparsify", "gemma scope", "gemma scope 2", "llama scope", "qwen scope")


@pytest.mark.parametrize("name", DAMAGED)
def test_whatever_bytes_are_changed_one_line_or_an_sae_is_the_answer(name: str, tmp_path: Path) -> None:
    rng = Random(0)
    folder = write(tmp_path, LAYOUTS[name][1])
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for path, data in [*whole.items()] * 60:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(-min(len(data), 600), min(len(data), 1500))] = rng.randrange(256)  # headers, mostly
        path.write_bytes(changed if rng.random() < 0.8 else data[: rng.randrange(len(data))])
        try:
            assert load(folder).not_finite() is None
        except UserError as error:
            assert str(error).startswith(f"{folder}: ") and "\n" not in str(error)
        path.write_bytes(data)
