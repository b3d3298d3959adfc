"""Models and tokenizers load from a directory or from the package, as they were saved and as was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import complaint
from safetensors.torch import load_file
from saved_models import SIZE, edit_config, edit_weights, save, settings
from transformers import AutoModelForCausalLM, Gemma2Config, GemmaConfig, GPTNeoXConfig, MixtralConfig, PreTrainedConfig

from gsae_ray.config.site import Site
from gsae_ray.language_model.hooks import capture, site_widths
from gsae_ray.language_model.loading import load_config, load_model, load_skeleton, load_tokenizer, model_fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_saved_model_is_loaded_bit_for_bit_in_the_dtype_asked_for(saved: Path, dtype: str) -> None:
    model = load_model(settings(saved, dtype=dtype))
    on_disk, loaded = load_file(saved / "model.safetensors"), model.state_dict()
    assert set(on_disk) <= set(loaded)
    assert all(torch.equal(loaded[name], on_disk[name].to(getattr(torch, dtype))) for name in on_disk)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_implementation_is_the_one_asked_for(saved: Path, attention: str) -> None:
    model = load_model(settings(saved, attn_implementation=attention))
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["lab/no-such-kernel", {"": "lab/no-such-kernel"}])
def test_an_attention_implementation_that_comes_with_a_model_is_not_used(
    key: str, value: object, directory: Path
) -> None:
    edit_config(directory, **{key: value})
    for load in (load_config, load_skeleton, load_model):
        loaded = load(settings(directory, attn_implementation="eager"))
        config = loaded if isinstance(loaded, PreTrainedConfig) else loaded.config
        assert config._attn_implementation == "eager"
    assert load_skeleton(settings(directory)).config._attn_implementation == "sdpa"
    assert load_model(settings(directory)).config._attn_implementation == "sdpa"


def test_an_experts_implementation_that_comes_with_a_model_is_not_used(tmp_path: Path) -> None:
    path = save(tmp_path / "moe", MixtralConfig(**SIZE, num_local_experts=2))
    expected = load_model(settings(path)).config._experts_implementation
    edit_config(path, experts_implementation="sonicmoe")
    assert load_model(settings(path)).config._experts_implementation == expected != "sonicmoe"
    assert load_skeleton(settings(path)).config._experts_implementation != "sonicmoe"


def test_the_skeleton_has_the_models_shapes_and_needs_no_weights(directory: Path) -> None:
    expected = {name: tensor.shape for name, tensor in load_model(settings(directory)).state_dict().items()}
    (directory / "model.safetensors").unlink()
    skeleton = load_skeleton(settings(directory))
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == expected
    assert all(parameter.is_meta for parameter in skeleton.parameters()) and not skeleton.training


def test_the_tokenizer_is_the_one_saved_with_the_model(saved: Path) -> None:
    text = "def main():\n    return 0"
    ids = load_tokenizer(settings(saved))(text)["input_ids"]
    assert ids == load_tokenizer(settings("builtin"))(text)["input_ids"]
    assert load_tokenizer(settings(saved)).decode(ids) == text


@pytest.mark.usefixtures("offline")
def test_the_builtin_model_needs_no_network() -> None:
    model = settings("builtin", context_size=128)
    assert load_config(model).model_type == "gpt_neox"
    assert len(model_fingerprint(model)) == 64
    ids = torch.tensor(load_tokenizer(model)(["import os\nimport sys\n\ndef main():\n    return 0\n"])["input_ids"])
    loss = load_model(model)(ids, labels=ids).loss.item()
    assert loss < 6  # log(4096) = 8.3 is what a model that knows nothing has


def test_a_home_directory_is_written_with_a_tilde(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    assert load_config(settings("~/tiny")).hidden_size == 16
    assert model_fingerprint(settings("~/tiny")) == model_fingerprint(settings(saved))


def test_gemma_2_loads_with_default_settings_and_caps_its_attention(tmp_path: Path) -> None:
    path = save(tmp_path / "gemma2", Gemma2Config(**SIZE, sliding_window=8, attn_logit_softcapping=0.01))
    tokens = torch.arange(1, 17)[None]
    model = load_model(settings(path))  # sdpa, the default kernel, has no soft cap
    assert torch.equal(model(tokens).logits, load_model(settings(path, attn_implementation="eager"))(tokens).logits)


PAPER_POINTS = ("mlp_out", "attn_z", "resid_post")
PAPER_MODELS = {  # of the classes of Pythia-2.8B and Gemma-7B, whose heads are wider together than the model
    "pythia": (GPTNeoXConfig(**SIZE, use_parallel_residual=True, rotary_pct=0.25, tie_word_embeddings=False), 16),
    "gemma": (GemmaConfig(**{**SIZE, "num_key_value_heads": 2, "head_dim": 12}), 2 * 12),
}


@pytest.mark.parametrize("name", PAPER_MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_papers_sites_are_read_in_models_of_its_classes_from_a_directory(
    name: str, dtype: str, tmp_path: Path
) -> None:
    config, z_width = PAPER_MODELS[name]
    path = save(tmp_path / name, config)
    if name == "pythia":  # as published: with the buffers of an older transformers
        edit_weights(path, lambda weights: weights.update({"gpt_neox.layers.0.attention.masked_bias": torch.zeros(())}))
    model = settings(path, dtype=dtype)
    widths = {Site.of_point(1, point): 16 for point in PAPER_POINTS} | {Site.of_point(1, "attn_z"): z_width}
    assert site_widths(load_skeleton(model), list(widths)) == widths
    parts = [Site.of_point(1, point) for point in ("resid_pre", "attn_out")]
    tokens = torch.arange(3, 23).reshape(2, 10)
    x = capture(load_model(model), tokens, [*parts, *widths])
    assert {site: x[site].shape[2] for site in widths} == widths
    assert {tensor.dtype for tensor in x.values()} == {getattr(torch, dtype)}
    added = x[parts[0]] + x[parts[1]] + x[Site.of_point(1, "mlp_out")]
    tolerance = 1e-6 if dtype == "float32" else 0.05
    torch.testing.assert_close(added, x[Site.of_point(1, "resid_post")], rtol=tolerance, atol=tolerance)
    saved_model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    for site, expected in capture(saved_model, tokens, list(widths)).items():
        assert torch.equal(x[site], expected)


@pytest.mark.parametrize("name", ["builtin", "directory"])
def test_a_model_without_a_tokenizer_is_given_one(name: str, directory: Path, tmp_path: Path) -> None:
    expected = load_tokenizer(settings(directory)).get_vocab()
    (tmp_path / "own").mkdir()
    for file in directory.glob("tokenizer*"):
        file.rename(tmp_path / "own" / file.name)
    given = name if name == "builtin" else str(tmp_path / "own")
    assert load_tokenizer(settings(directory, tokenizer=given)).get_vocab() == expected


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["lab/no-such-tokenizer", "/no/such/directory"])
def test_a_tokenizer_that_is_not_there_is_blamed_on_its_own_key(name: str, saved: Path) -> None:
    message = complaint(load_tokenizer, settings(saved, tokenizer=name))
    assert message.startswith("model.tokenizer: ") and f"{name!r}" in message
