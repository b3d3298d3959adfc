"""Models and tokenizers that cannot be loaded fail with one line that says why."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from checkpoints import complaint
from safetensors.torch import load_file
from saved_models import SIZE, edit_config, edit_weights, save, settings
from transformers import BloomConfig, Gemma2Config, Gemma3Config, GPT2Config, LlamaConfig, PreTrainedConfig

from gsae_ray.config.sections import ModelSettings
from gsae_ray.language_model.loading import (
    check_weights,
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    model_fingerprint,
)

LOADERS = [load_config, load_tokenizer, load_model, load_skeleton, model_fingerprint]
any_loader = pytest.mark.parametrize("load", LOADERS)


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


@pytest.mark.parametrize("load", [load_skeleton, load_model])
@pytest.mark.parametrize(
    "config", [Gemma2Config(**SIZE), BloomConfig(vocab_size=4096, hidden_size=16, n_layer=1, n_head=2)]
)
def test_an_attention_kernel_that_a_family_has_not_is_told_by_the_key(
    tmp_path: Path, load: Callable[[ModelSettings], torch.nn.Module], config: PreTrainedConfig
) -> None:
    save(tmp_path, config)
    message = complaint(load, settings(tmp_path, attn_implementation="sdpa"))
    assert message == (
        f"model.attn_implementation: transformers has no sdpa for {str(tmp_path)!r}; take eager, or leave the key out: "
        "sdpa where the model has it, else eager"
    )
    for attention in ("eager", None):  # what the line says is so
        assert load(settings(tmp_path, attn_implementation=attention)) is not None
