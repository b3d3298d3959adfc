"""SAEs in the layouts that others publish, made here of known weights, give the features computed here in float64."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from gsae_ray.errors import UserError
from gsae_ray.saes import SAE, SAEConfig, build, load
from gsae_ray.saes.export import export

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


def dictionary(dict_class: str, state: dict[str, torch.Tensor]) -> Files:
    return {"ae.pt": state, "config.json": {"trainer": {"dict_class": dict_class, **TRAINER}, "buffer": {}}}


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
layouts = pytest.mark.parametrize("name", LAYOUTS)


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


def close(actual: torch.Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@layouts
def test_the_known_features(name: str, tmp_path: Path) -> None:
    architecture, files, features = LAYOUTS[name]
    sae = load(write(tmp_path, files))
    assert sae.architecture == architecture and not sae.training
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (N, M)
    whole = (features > 0).sum(1) <= (K if architecture == "topk" else M)  # no ties
    assert whole.mean() > 0.8
    x = torch.tensor(X, dtype=torch.float32)
    close(sae.encode(x)[torch.tensor(whole)], features[whole])
    b_dec, W_dec = W["b_dec"], W["W_dec"]
    if "normed activations" in name:
        b_dec = b_dec / SCALE
    if name in ("AutoEncoder", "saelens topk by norms"):  # these libraries divide rows by their norms
        W_dec = W_dec / NORMS[:, None]
    close(sae.decode(torch.tensor(features, dtype=torch.float32)), features @ W_dec + b_dec)


def test_thresholds_are_touched() -> None:
    assert (pre(False) == W["threshold"]).sum() >= M // 3
    assert (X @ W["W_enc"] + W["b_enc"] + W["b_gate"] == 0).sum() >= M


@layouts
def test_as_ours_it_stays_the_same(name: str, tmp_path: Path) -> None:
    sae = load(write(tmp_path, LAYOUTS[name][1]))
    sae.save(tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert again.cfg == sae.cfg
    for key, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_of_any_dtype_are_encoded_and_decoded(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    sae = load(write(tmp_path, LAYOUTS[name][1]))
    x = torch.tensor(X).to(dtype)
    acts = sae.encode(x)
    assert acts.dtype == torch.float32 and torch.equal(acts, sae.encode(x.float()))
    assert torch.equal(sae.decode(acts.to(dtype)), sae.decode(acts.to(dtype).float()))


def test_where_an_sae_is_of_and_what_its_files_said_is_kept(tmp_path: Path) -> None:
    sae = load(write(tmp_path, saelens("standard")))
    assert sae.cfg.site == "blocks.1.hook_resid_post"
    assert sae.cfg.metadata["model"] == {"name": "gpt2"} and sae.cfg.metadata["origin"] == "saelens"
    assert sae.cfg.metadata["settings"]["metadata"]["sae_lens_version"] == "6.54.12"
    assert sae.cfg.hyperparameters == {}
    about = {"sae_lens_version": "6.54.12", "hook_name": "model.layers.3", "model_class_name": "AutoModelForCausalLM"}
    assert load(write(tmp_path, saelens("standard", metadata=about))).cfg.site == "model.layers.3:output"
    named = load(write(tmp_path / "named", dictionary("AutoEncoder", linear("bias"))))
    assert named.cfg.site == "" and named.cfg.metadata["settings"]["trainer"] == {
        "dict_class": "AutoEncoder",
        **TRAINER,
    }
    qwen = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_3"
    write(qwen, {"layer7.sae.pt": qwen_scope(), "layer8.sae.pt": qwen_scope()})
    assert load(qwen / "layer8.sae.pt").cfg.site == "blocks.8.hook_resid_post"
    assert "2 SAEs, layer7.sae.pt to layer8.sae.pt; give the path of one" in refusal(qwen)


# ---- written --------------------------------------------------------------------------------------------------------


def of(architecture: str, hyperparameters: dict[str, Any]) -> SAE:
    metadata = {"model": {"name": "EleutherAI/pythia-70m", "context_size": 128}}
    fields: dict[str, Any] = {"hyperparameters": hyperparameters, "metadata": metadata}
    sae = build(SAEConfig(architecture=architecture, d_in=N, d_sae=M, site="blocks.3.hook_resid_post", **fields))
    names = {"b_mag": "b_enc", "W_mag": "W_enc"}
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.tensor(W[names.get(name, name)]))
        sae.normalise_decoder()
    return sae


WRITTEN: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "standard": ("standard", {"l1_coefficient": 1.0}, "AutoEncoder", "StandardTrainer"),
    "gated": ("gated", {"l1_coefficient": 1.0}, "GatedAutoEncoder", "GatedSAETrainer"),
    "jumprelu": ("jumprelu", {}, "JumpReluAutoEncoder", "JumpReluTrainer"),
    "jumprelu of x": ("jumprelu", {"subtract_b_dec": False}, "JumpReluAutoEncoder", "JumpReluTrainer"),
    "topk": ("topk", {"k": K}, "AutoEncoderTopK", "TopKTrainer"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_dictionary_is_written_and_says_what_saebench_asks_for(name: str, tmp_path: Path) -> None:
    architecture, hyperparameters, dict_class, trainer_class = WRITTEN[name]
    sae = of(architecture, hyperparameters)
    export(sae, tmp_path / "out", format="dictionary_learning")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ae.pt", "config.json"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    known = {"layer": 3, "lm_name": "EleutherAI/pythia-70m", "submodule_name": "blocks.3.hook_resid_post"}
    known |= {"dict_class": dict_class, "trainer_class": trainer_class, "activation_dim": N, "dict_size": M}
    assert config["trainer"] == {**known, "k": K} if architecture == "topk" else known
    assert config["buffer"] == {"ctx_len": 128}
    state = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in state.values())
    x = torch.tensor(X, dtype=torch.float32)
    again = load(tmp_path / "out")
    assert again.cfg.site == sae.cfg.site
    torch.testing.assert_close(again(x), sae(x))


def test_sparsify_is_written_of_topk_only(tmp_path: Path) -> None:
    sae = of("topk", {"k": K, "subtract_b_dec": False})
    export(sae, tmp_path / "out", format="sparsify")
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (cfg["num_latents"], cfg["k"], cfg["d_in"], cfg["transcode"]) == (M, K, N, False)
    x = torch.tensor(X + 1e-3 * np.arange(N), dtype=torch.float32)  # no ties
    torch.testing.assert_close(load(tmp_path / "out")(x), sae(x))
    with pytest.raises(UserError, match="sparsify: a gated SAE has no form there"):
        export(of("gated", {"l1_coefficient": 1.0}), tmp_path / "gated", format="sparsify")
    assert not (tmp_path / "gated").exists()


def test_untied_gates_are_no_dictionary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dictionary_learning: .* untied encoders"):
        export(of("gated", {"l1_coefficient": 1.0, "tied": False}), tmp_path / "out", format="dictionary_learning")
    assert not (tmp_path / "out").exists()


# ---- refused --------------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ") and len(message) < 800
    return message


def with_cfg(files: Files, **changes: Any) -> Files:
    name = next(name for name in files if name.endswith(".json"))
    return {**files, name: {k: v for k, v in {**files[name], **changes}.items() if v is not ...}}


def with_tensors(files: Files, **changes: Any) -> Files:
    name = next(name for name in files if not name.endswith(".json"))
    new = {key.replace("__", "."): value for key, value in changes.items()}
    return {**files, name: {k: v for k, v in {**files[name], **new}.items() if v is not ...}}


STANDARD = saelens("standard")
AE = dictionary("AutoEncoder", linear("bias"))
REFUSED: dict[str, tuple[Files, str]] = {
    "average": (
        with_cfg(STANDARD, normalize_activations="expected_average_only_in"),
        "scale of its activations is not",
    ),
    "average, before 6": (with_cfg(STANDARD, normalize_activations=True), "'expected_average_only_in'"),
    "layer norm": (with_cfg(STANDARD, normalize_activations="layer_norm"), "layer_norm': each row is normalised"),
    "row norms": (with_cfg(STANDARD, normalize_activations="constant_norm_rescale"), "each row is divided by its norm"),
    "transcoder": (with_cfg(STANDARD, architecture="skip_transcoder"), "architecture 'skip_transcoder' is not known"),
    "W_skip": (with_tensors(STANDARD, W_skip=torch.zeros(N, N)), "'W_skip' is no tensor of this architecture"),
    "other architecture": (with_cfg(STANDARD, architecture="gated"), "b_gate is missing"),
    "d_in": (with_cfg(STANDARD, d_in=7), f"d_in is 7, but sae_weights.safetensors has {N}"),
    "k": (saelens("topk"), "k: None: "),
    "large k": (saelens("topk", k=11), "k: 11 is more than the 10 features"),
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
    "sparsify's transcoder": (sparsify(transcode=True), "transcode is true: this is a transcoder"),
    "skip connection": (sparsify(skip_connection=True), "skip_connection is true"),
    "sparsify without k": (with_cfg(sparsify(), k=...), "k is missing"),
    "sparsify's d_in": (sparsify(d_in=7), f"d_in is 7; sae.safetensors has {N}"),
    "npz of objects": ({"params.npz": {"W_enc": np.array([{}], dtype=object)}}, "params.npz is not a file of arrays"),
    "no npz": ({"params.npz": b"PK none"}, "params.npz is not a file of arrays"),
    "npz of text": ({"params.npz": {"W_enc": np.array(["a"])}}, "params.npz is not a file of arrays"),
    "npz without threshold": ({"params.npz": {name: W[name] for name in LINEAR}}, "threshold is missing"),
    "gemma transcoder": (gemma_scope_2(hf_hook_point_out="model.layers.9.mlp.output"), "this is a transcoder"),
    "gemma skip": (with_tensors(gemma_scope_2(), affine_skip_connection=torch.zeros(N, N)), "this is a transcoder"),
    "gemma architecture": (gemma_scope_2(architecture="topk"), "architecture is 'topk'; known: 'jump_relu'"),
    "GLU": (llama_scope("relu", use_glu_encoder=True), "use_glu_encoder is True"),
    "batch": (llama_scope("batchtopk"), "act_fn is 'batchtopk'; known: 'relu', 'jumprelu', 'topk'"),
    "token norms": (llama_scope("relu", "token-wise"), "norm_activation is 'token-wise'"),
    "llama transcoder": (llama_scope("relu", hook_point_out="blocks.15.hook_mlp_out"), "a transcoder, not an SAE"),
    "no norm": (with_cfg(llama_scope("relu"), norm_activation="dataset-wise"), "is missing, or no positive number"),
    "top of norms": (llama_scope("topk", sparsity_include_decoder_norm=True), "decoder norms other than 1"),
    "no k in the path": ({"layer7.sae.pt": qwen_scope()}, "layer7.sae.pt has no k"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    files, named = REFUSED[kind]
    assert named in refusal(write(tmp_path, files))


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
