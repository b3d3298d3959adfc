"""Models and tokenizers load from a directory, from the package, or fail with one line that says why."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from checkpoints import complaint
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
)

from gsae_ray.builtin import MODEL_DIR
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.site import Site
from gsae_ray.language_model.hooks import capture, site_widths
from gsae_ray.language_model.loading import (
    check_weights,
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    model_fingerprint,
)

SIZE = {
    "vocab_size": 4096,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LOADERS = [load_config, load_tokenizer, load_model, load_skeleton, model_fingerprint]
any_loader = pytest.mark.parametrize("load", LOADERS)


def save(directory: Path, config: PreTrainedConfig) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny", LlamaConfig(**SIZE))


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """A copy to change at will."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def settings(name: str | Path, context_size: int = 32, **fields: Any) -> ModelSettings:
    return ModelSettings(name=str(name), context_size=context_size, **fields)


def edit_config(directory: Path, **fields: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **fields}))


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    edit(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read once, at import


# ---- what is loaded -------------------------------------------------------------------------------------------------


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


# ---- fingerprints ---------------------------------------------------------------------------------------------------


def test_a_fingerprint_does_not_depend_on_where_the_model_lies(saved: Path, directory: Path) -> None:
    assert model_fingerprint(settings(saved)) == model_fingerprint(settings(directory))


def test_fingerprints_differ_by_dtype_and_attention(saved: Path) -> None:
    models = [settings(saved), settings(saved, dtype="bfloat16"), settings(saved, attn_implementation="eager")]
    assert len({model_fingerprint(model) for model in models}) == 3


def test_a_fingerprint_differs_by_one_number_of_one_weight(saved: Path, directory: Path) -> None:
    edit_weights(directory, lambda weights: weights["model.norm.weight"][3].add_(1e-6))
    assert model_fingerprint(settings(directory)) != model_fingerprint(settings(saved))


def test_a_fingerprint_differs_by_the_configuration(saved: Path, directory: Path) -> None:
    edit_config(directory, rms_norm_eps=1e-3)
    assert model_fingerprint(settings(directory)) != model_fingerprint(settings(saved))


def test_a_fingerprint_differs_by_the_code_that_comes_with_a_model(directory: Path) -> None:
    (directory / "modeling_own.py").write_text("SCALE = 1\n")
    before = model_fingerprint(settings(directory))
    (directory / "modeling_own.py").write_text("SCALE = 2\n")
    assert model_fingerprint(settings(directory)) != before


def test_a_fingerprint_is_of_what_is_there_now(directory: Path) -> None:
    before = model_fingerprint(settings(directory))
    edit_weights(directory, lambda weights: weights["model.norm.weight"][3].add_(1e-6))
    assert model_fingerprint(settings(directory)) != before


@pytest.mark.usefixtures("offline")
def test_a_model_of_the_hub_is_known_by_its_commit(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--lab--tiny"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def fingerprint(commit: str, **fields: Any) -> str:
        (repository / "refs" / "main").write_text(commit)
        return model_fingerprint(settings("lab/tiny", **fields))

    assert fingerprint("a" * 40) != fingerprint("b" * 40)
    assert fingerprint("b" * 40, revision="a" * 40) == fingerprint("a" * 40)
    assert torch.equal(
        load_model(settings("lab/tiny")).lm_head.weight, load_file(saved / "model.safetensors")["lm_head.weight"]
    )


# ---- errors ---------------------------------------------------------------------------------------------------------


@any_loader
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["lab/no-such-model", "no-such-model", "a/b/c/d"])
def test_a_model_that_is_not_there_is_one_quick_line_offline(
    load: Callable[[ModelSettings], object], name: str
) -> None:
    start = time.monotonic()
    message = complaint(load, settings(name))
    assert f"{name!r}" in message and "cannot be reached" in message
    assert time.monotonic() - start < 20  # no retries: offline is said


@pytest.mark.slow  # huggingface_hub tries six times, in 23 s
def test_a_hub_that_cannot_be_reached_is_one_line_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_listens = "http://127.0.0.1:9"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody_listens)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody_listens + "/{repo_id}/{revision}/{filename}"
    )
    start = time.monotonic()
    assert "cannot be reached" in complaint(load_config, settings("lab/no-such-model"))
    assert time.monotonic() - start < 90  # not the minutes of every retry


@any_loader
@pytest.mark.parametrize("name", ["/no/such/directory", "./no-such-directory"])
def test_a_directory_that_is_not_there_is_named(load: Callable[[ModelSettings], object], name: str) -> None:
    assert complaint(load, settings(name)) == f"model.name: there is no directory {name!r}"


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZE),
        GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=1, n_head=2),  # which calls it n_positions
        Gemma3Config(text_config=SIZE),  # where the text model's is nested
    ],
    ids=lambda config: config.model_type,
)
def test_a_context_longer_than_the_models_positions_is_refused(config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    load_config(settings(tmp_path, context_size=64))
    for load in (load_config, load_skeleton):
        message = complaint(load, settings(tmp_path, context_size=65))
        assert message.startswith("model.context_size: 65 ") and "64 positions" in message


def test_a_directory_without_weights_is_said_to_be_so(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    message = complaint(load_model, settings(directory))
    assert str(directory) in message and "weights" in message and "model.safetensors" in message


@pytest.mark.parametrize("base", [True, False])
def test_an_adapter_is_refused_with_what_is_to_be_done(base: bool, directory: Path) -> None:
    """Beside its base model, whose activations it would change, and in a folder of its own."""
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "lab/base", "r": 8, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(adapter))
    if not base:
        for name in ("config.json", "model.safetensors"):
            (directory / name).unlink()
    for load in (load_config, load_skeleton, load_model):
        message = complaint(load, settings(directory))
        assert "adapter" in message and "merge_and_unload" in message and str(directory) in message


def test_weights_of_an_adapter_among_a_models_are_refused(directory: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    edit_weights(directory, lambda weights: weights.update({name: torch.ones(2, 16)}))
    for load in (load_model, check_weights):
        message = complaint(load, settings(directory))
        assert name in message and "merge_and_unload" in message


def test_pickled_weights_are_never_read(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    assert "safetensors" in complaint(load_model, settings(directory))


def test_a_directory_without_tokenizer_is_said_to_be_so(directory: Path) -> None:
    for file in directory.glob("tokenizer*"):
        file.unlink()
    message = complaint(load_tokenizer, settings(directory))
    assert "tokenizer" in message and not message.endswith(("of:", "of: "))  # the first line of several says nothing


@pytest.mark.parametrize("content", ["", "{", '{"model_type": "no-such-family"}', "{}", "null", "[]", "7"])
def test_a_broken_configuration_is_one_line(content: str, directory: Path) -> None:
    (directory / "config.json").write_text(content)
    for load in (load_config, load_skeleton, load_model):
        assert str(directory) in complaint(load, settings(directory))


loading = pytest.mark.parametrize("load", [load_model, check_weights])
"""In a producer, and before anything starts."""


@loading
def test_weights_cut_short_are_one_line(directory: Path, load: Callable[[ModelSettings], object]) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(directory) in complaint(load, settings(directory))


@loading
def test_weights_of_another_shape_are_one_line(directory: Path, load: Callable[[ModelSettings], object]) -> None:
    edit_config(directory, intermediate_size=25)
    message = complaint(load, settings(directory))
    assert str(directory) in message
    assert "model.layers.0.mlp.down_proj.weight has the shape [" in message and "25] by its configuration" in message


@loading
def test_a_weight_that_is_missing_is_an_error_and_never_made_up(
    directory: Path, load: Callable[[ModelSettings], object]
) -> None:
    edit_weights(directory, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    assert "model.layers.1.mlp.up_proj.weight" in complaint(load, settings(directory))


def test_checking_weights_reads_none(directory: Path) -> None:
    check_weights(settings(directory))
    assert {p.device.type for p in load_model(settings(directory), "meta").parameters()} == {"meta"}


def test_code_that_comes_with_a_model_is_not_run_unless_asked_for(directory: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (directory / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    edit_config(directory, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    for load in (load_config, load_skeleton, load_model):
        assert "model.trust_remote_code" in complaint(load, settings(directory))
    tokenizer = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["own.T", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert "model.trust_remote_code" in complaint(load_tokenizer, settings(directory))
    assert not ran.exists()
