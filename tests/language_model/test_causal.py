"""Metrics of predictions are of causal language models only; others are refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import complaint
from prepared import write_jsonl
from producers import tokens_of
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RemBertConfig,
    RobertaConfig,
    T5Config,
    XLMConfig,
)

from gsae_ray.activations.producer import Producer
from gsae_ray.builtin import MODEL_DIR
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.sweep import Sweep
from gsae_ray.data.tokens import PADDING
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.errors import UserError
from gsae_ray.language_model.causal import check_predictions
from gsae_ray.language_model.loading import load_config, load_skeleton

SIZE = {
    "vocab_size": 4096,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKENS_T = torch.arange(3, 35)


def by_type(config: PreTrainedConfig) -> str:
    return str(config.model_type)


@pytest.mark.parametrize("config", [BertConfig(**SIZE), RobertaConfig(**SIZE)], ids=by_type)
def test_an_encoder_is_refused_although_transformers_loads_it_as_a_causal_model(
    config: PreTrainedConfig, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    message = complaint(load_skeleton, ModelSettings(name=str(tmp_path), context_size=32))
    assert message.startswith(f"model.name: {str(tmp_path)!r} is no causal language model") and "encoder" in message


@pytest.mark.parametrize("config", [T5Config(), BartConfig(), ModernBertConfig()], ids=by_type)
def test_a_model_that_is_no_decoder_alone_is_refused_by_its_type(config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    message = complaint(load_config, ModelSettings(name=str(tmp_path), context_size=32))
    assert "no causal language model" in message and config.model_type in message


def test_berts_layers_as_a_decoder_are_accepted(tmp_path: Path) -> None:
    BertConfig(**SIZE, is_decoder=True).save_pretrained(tmp_path)
    load_skeleton(ModelSettings(name=str(tmp_path), context_size=32))


def random(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZE),
        BertConfig(**SIZE, is_decoder=True),
        MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2),
        MixtralConfig(
            **SIZE, num_key_value_heads=1, num_local_experts=4
        ),  # which rounds by which tokens share an expert
    ],
    ids=by_type,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_predictions_hang_on_what_came_before_is_accepted(
    config: PreTrainedConfig, dtype: torch.dtype
) -> None:
    check_predictions("it", random(config).to(dtype), TOKENS_T)


@pytest.mark.parametrize(
    "config",
    [BertConfig(**SIZE), RemBertConfig(**SIZE), XLMConfig(vocab_size=64, emb_dim=16, n_layers=2, n_heads=2)],
    ids=by_type,
)
def test_a_model_whose_predictions_hang_on_what_comes_after_is_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(UserError, match="'it' is no causal language model"):
        check_predictions("it", random(config), TOKENS_T)


@pytest.mark.parametrize("contexts", [False, True])
def test_a_producer_does_not_come_up_with_a_model_that_is_not_causal(contexts: bool, tmp_path: Path) -> None:
    """Where nothing but what it computes tells: code of its own, or attention that does not say which way it looks."""
    dataset: dict[str, Any] = {"name": "builtin"}
    if contexts:  # the first of two tokens, of which nothing can be told
        rows = [[row + 3 + token for token in range(2 + 28 * (row % 4 == 0))] for row in range(400)]
        write_jsonl(tmp_path / "a.jsonl", rows, "input_ids")
        dataset = {"name": str(tmp_path / "a.jsonl"), "tokens_column": "input_ids", "tokens_are": "contexts"}
    random(RemBertConfig(**SIZE)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(tmp_path)
    sweep = Sweep.model_validate(
        {
            "name": "encoder",
            "model": {"name": str(tmp_path), "context_size": 32},
            "dataset": dataset,
            "sites": {"modules": [{"module": "rembert.encoder.layer.0"}]},
            "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": 1.0}],
            "training": {"tokens": 1024, "batch_size": 64, "lr": 1e-3},
            "evaluation": {"tokens": 256, "fraction": 0.3},
        }
    )
    plan = prepare(sweep, tmp_path / "storage")
    assert not contexts or (tokens_of(plan).block(0)[0] != PADDING).sum() == 2
    with pytest.raises(UserError, match="no causal language model"):
        Producer(producer_spec(plan))
