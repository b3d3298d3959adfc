"""SAEs in the layouts that others publish give the known features, and ours are written in some of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from public_layouts import (
    LAYOUTS,
    LINEAR,
    NORMS,
    SCALE,
    TRAINER,
    Files,
    K,
    M,
    N,
    W,
    X,
    dictionary,
    gemma_scope_2,
    linear,
    pre,
    qwen_scope,
    refusal,
    relu,
    saelens,
    write,
)

from gsae_ray.errors import UserError
from gsae_ray.saes import SAE, BatchTopKSAE, SAEConfig, build, load
from gsae_ray.saes.export import export

NPZ: Files = {"params.npz": {name: W[name] for name in (*LINEAR, "threshold")}}
layouts = pytest.mark.parametrize("name", LAYOUTS)


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
    assert sae.cfg.hyperparameters == {} and sae.sparsity_coefficient is None
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


def test_on_rows_of_large_norm_a_gate_is_open_where_the_library_has_it_open(tmp_path: Path) -> None:
    """What is computed is x − b_dec as it stands; as training does it, some of these gates would be the other way."""
    generator = torch.Generator().manual_seed(0)
    files = saelens("gated", *LINEAR, "b_gate", "r_mag")
    weights = {name: torch.randn(t.shape, generator=generator) for name, t in files["sae_weights.safetensors"].items()}
    weights["b_dec"] *= 1e4
    x = weights["b_dec"] + torch.randn(20_000, N, generator=generator)
    sae = load(write(tmp_path, {**files, "sae_weights.safetensors": weights}))
    open_there = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_gate"] > 0
    shift = weights["b_gate"] - weights["b_dec"] @ weights["W_enc"]
    assert ((x @ weights["W_enc"] + shift > 0) != open_there).any()
    magnitude = ((x - weights["b_dec"]) @ weights["W_enc"]) * weights["r_mag"].exp() + weights["b_mag"]
    assert torch.equal(sae.encode(x), magnitude.relu() * open_there)


GEMMA = "gemma-scope-{}/layer_20/width_16k/average_l0_71"
SITES: dict[str, tuple[str, Files, str, str | None]] = {
    "res": (GEMMA.format("2b-pt-res"), NPZ, "blocks.20.hook_resid_post", "google/gemma-2-2b"),
    "mlp": (GEMMA.format("9b-pt-mlp-canonical"), NPZ, "blocks.20.hook_mlp_out", "google/gemma-2-9b"),
    "att": (GEMMA.format("9b-it-att"), NPZ, "blocks.20.attn.hook_z", "google/gemma-2-9b-it"),
    "cached": (
        "models--google--gemma-scope-2b-pt-res/snapshots/0a1/layer_3/width_16k/average_l0_71",
        NPZ,
        "blocks.3.hook_resid_post",
        "google/gemma-2-2b",
    ),
    "unknown": ("layer_20/width_16k/average_l0_71", NPZ, "", None),
    "2": ("x", gemma_scope_2(), "blocks.9.hook_resid_post", "gemma-v3-270m"),
    "2, attention": (
        "x",
        gemma_scope_2(hf_hook_point_in="model.language_model.layers.9.self_attn.o_proj.input"),
        "blocks.9.attn.hook_z",
        "gemma-v3-270m",
    ),
    "2, MLP": (
        "x",
        gemma_scope_2(hf_hook_point_in="model.layers.9.post_feedforward_layernorm.output"),
        "blocks.9.hook_mlp_out",
        "gemma-v3-270m",
    ),
    "2, other": ("x", gemma_scope_2(hf_hook_point_in="model.norm.input"), "model.norm:input", "gemma-v3-270m"),
    "2 by names": ("attn_out_all/x", {}, "", None),
    "2 by their names": ("attn_out/layer_7_width_16k_l0_small", {}, "blocks.7.attn.hook_z", None),
}


@pytest.mark.parametrize("name", SITES)
def test_the_site_of_gemma_scope_is_known_by_its_configuration_or_by_the_published_folders(
    name: str, tmp_path: Path
) -> None:
    folder, files, site, model = SITES[name]
    files = files or {"params.safetensors": gemma_scope_2()["params.safetensors"]}
    sae = load(write(tmp_path, {f"{folder}/{file}": value for file, value in files.items()}))
    assert (sae.cfg.site, sae.cfg.metadata.get("model", {}).get("name")) == (site, model)


def test_k_of_a_pickled_sae_is_of_its_file_its_folder_or_its_repository_in_the_hub_s_cache(tmp_path: Path) -> None:
    for path, k in (
        ("L0_5/layer7.L0_2.sae.pt", 2),
        ("L0_5/L0_2/layer7.sae.pt", 2),
        ("models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_4/snapshots/0a1/layer7.sae.pt", 4),
    ):
        write(tmp_path, {path: qwen_scope()})
        assert load(tmp_path / path).cfg.hyperparameters["k"] == k
    assert load(tmp_path / path).cfg.site == "blocks.7.hook_resid_post"


def said_to_saelens(sae: SAE, folder: Path) -> dict[str, Any]:
    sae.save(folder)
    return json.loads((folder / "cfg.json").read_text())


def test_what_the_activations_are_of_is_said_again_when_it_is_saved_as_ours(tmp_path: Path) -> None:
    """Of files from before SAELens 6, whose BOS was there unless they said that it was not, and of dictionaries."""
    flat = {"hook_point": "blocks.2.attn.hook_z", "model_name": "gpt2", "context_size": 64, "dataset_path": "some/text"}
    before_6 = {key: value for key, value in saelens("standard")["cfg.json"].items() if key != "metadata"}
    for name, own, prepended in (("a", {}, True), ("b", {"prepend_bos": False}, False)):
        files = {**saelens("standard"), "cfg.json": {**before_6, **flat, **own}}
        cfg = said_to_saelens(load(write(tmp_path / name, files)), tmp_path / f"{name} as ours")
        assert cfg["reshape_activations"] == "hook_z"
        assert cfg["metadata"] == {
            "sae_lens_version": "6.54.12",
            "training_architecture": "standard",
            "model_name": "gpt2",
            "model_class_name": "HookedTransformer",
            "hook_name": "blocks.2.attn.hook_z",
            "context_size": 64,
            "dataset_path": "some/text",
            "prepend_bos": prepended,
        }
    files = dictionary("AutoEncoder", linear("bias"))
    files["config.json"]["buffer"] = {"ctx_len": 256}
    found = said_to_saelens(load(write(tmp_path / "c", files)), tmp_path / "c as ours")["metadata"]
    assert (found["model_name"], found["context_size"]) == ("gpt2", 256)


@pytest.mark.parametrize("reshape", ["none", "hook_z"])
def test_whether_heads_are_reshaped_is_said_again(reshape: str, tmp_path: Path) -> None:
    about = {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.attn.hook_z"}
    sae = load(write(tmp_path / "in", saelens("standard", metadata=about, reshape_activations=reshape)))
    assert said_to_saelens(sae, tmp_path / "out")["reshape_activations"] == reshape
    assert load(tmp_path / "out").cfg == sae.cfg


# ---- written --------------------------------------------------------------------------------------------------------


def of(architecture: str, hyperparameters: dict[str, Any]) -> SAE:
    metadata = {"model": {"name": "EleutherAI/pythia-70m", "context_size": 128}}
    fields: dict[str, Any] = {"hyperparameters": hyperparameters, "metadata": metadata}
    sae = build(SAEConfig(architecture=architecture, d_in=N, d_sae=M, site="blocks.3.hook_resid_post", **fields))
    names = {"b_mag": "b_enc", "W_mag": "W_enc"}
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.tensor(W[names.get(name, name)]))
        if isinstance(sae, BatchTopKSAE):
            sae.threshold.fill_(0.25)
        sae.normalise_decoder()
    return sae


WRITTEN: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "standard": ("standard", {"l1_coefficient": 1.0}, "AutoEncoder", "StandardTrainer"),
    "gated": ("gated", {"l1_coefficient": 1.0}, "GatedAutoEncoder", "GatedSAETrainer"),
    "jumprelu": ("jumprelu", {}, "JumpReluAutoEncoder", "JumpReluTrainer"),
    "jumprelu of x": ("jumprelu", {"subtract_b_dec": False}, "JumpReluAutoEncoder", "JumpReluTrainer"),
    "topk": ("topk", {"k": K}, "AutoEncoderTopK", "TopKTrainer"),
    "batchtopk": ("batchtopk", {"k": K}, "BatchTopKSAE", "BatchTopKTrainer"),
    "matryoshka": ("matryoshka_batchtopk", {"k": K}, "MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer"),
    "p_anneal": ("p_anneal", {"l1_coefficient": 1.0}, "AutoEncoder", "StandardTrainer"),
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
    assert config["trainer"] == {**known, "k": K} if architecture.endswith("topk") else known
    assert config["buffer"] == {"ctx_len": 128}
    state = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in state.values())
    x = torch.tensor(X, dtype=torch.float32)
    again = load(tmp_path / "out")
    assert again.cfg.site == sae.cfg.site
    torch.testing.assert_close(again(x), sae(x))


def test_features_of_a_dictionary_are_not_multiplied_by_decoder_norms(tmp_path: Path) -> None:
    """`load_dictionary` does that to an AutoEncoder whose norms are not 1, as those of SAEs from elsewhere may be."""
    sae, x = load(write(tmp_path / "in", saelens("standard"))), torch.tensor(X, dtype=torch.float32)
    assert sae.W_dec.norm(dim=1).max() > 1.5
    export(sae, tmp_path / "out", format="dictionary_learning")
    trainer = json.loads((tmp_path / "out" / "config.json").read_text())["trainer"]
    assert (trainer["dict_class"], trainer["trainer_class"]) == ("AutoEncoderNew", "StandardTrainerAprilUpdate")
    again = load(tmp_path / "out")
    close(again.encode(x), relu(pre(True)))
    torch.testing.assert_close(again(x), sae(x))


def test_sparsify_is_written_of_topk_only(tmp_path: Path) -> None:
    sae = of("topk", {"k": K, "subtract_b_dec": False})
    export(sae, tmp_path / "out", format="sparsify")
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (cfg["num_latents"], cfg["k"], cfg["d_in"], cfg["transcode"]) == (M, K, N, False)
    x = torch.tensor(X + 1e-3 * np.arange(N), dtype=torch.float32)  # no ties
    torch.testing.assert_close(load(tmp_path / "out")(x), sae(x))
    for architecture, hyperparameters in (("gated", {"l1_coefficient": 1.0}), ("batchtopk", {"k": K})):
        with pytest.raises(UserError, match=f"sparsify: a {architecture} SAE has no form there"):
            export(of(architecture, hyperparameters), tmp_path / "other", format="sparsify")
        assert not (tmp_path / "other").exists()


def test_the_prefixes_of_a_matryoshka_sae_are_in_every_file(tmp_path: Path) -> None:
    sae = of("matryoshka_batchtopk", {"k": K, "prefix_widths": [2, M]})
    for format in ("gsae", "saelens", "jumprelu"):
        export(sae, tmp_path / format, format=format)
        cfg = json.loads((tmp_path / format / "cfg.json").read_text())
        assert cfg["architecture"] == "jumprelu", "SAELens has no place for them there"
        assert cfg["metadata"]["training_architecture"] == "matryoshka_batchtopk"
        assert cfg["metadata"]["training_architecture_details"] == {"k": K, "matryoshka_widths": [2, M]}
    assert load(tmp_path / "gsae").cfg.hyperparameters["prefix_widths"] == [2, M]
    export(sae, tmp_path / "dictionary", format="dictionary_learning")
    state = torch.load(tmp_path / "dictionary" / "ae.pt", weights_only=True)
    assert state["group_sizes"].tolist() == [2, M - 2]
    sae.get_buffer("threshold")[0] = 1.0
    with pytest.raises(UserError, match="several thresholds"):
        export(sae, tmp_path / "several", format="dictionary_learning")


def test_untied_gates_are_no_dictionary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dictionary_learning: .* untied encoders"):
        export(of("gated", {"l1_coefficient": 1.0, "tied": False}), tmp_path / "out", format="dictionary_learning")
    assert not (tmp_path / "out").exists()
