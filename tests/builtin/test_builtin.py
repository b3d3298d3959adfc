"""The language model and the text that come with the package keep what is said of them."""

from __future__ import annotations

import json

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gsae_ray.builtin import MODEL_DIR, TEXT_FILES
from gsae_ray.builtin.make import cross_entropy, pack


def texts(split: str) -> list[str]:
    return datasets.Dataset.from_parquet(str(TEXT_FILES[split]))["text"][:]


def test_it_loads_like_any_checkpoint_and_is_small() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == ("gpt_neox", 4, 128)
    assert len(tokenizer) == 4096
    assert 1.7e6 < sum(p.numel() for p in model.parameters()) < 1.9e6
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 8e6
    assert sum(path.stat().st_size for path in TEXT_FILES.values()) <= 3e6


def test_the_held_out_documents_are_not_among_those_trained_on() -> None:
    train, held_out = texts("train"), texts("heldout")
    assert not set(train) & set(held_out)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert len(pack(tokenizer, train[:500])) > 500_000


@pytest.mark.slow
def test_the_held_out_cross_entropy_is_the_stated_one_and_at_most_three_nats() -> None:
    torch.set_num_threads(2)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    loss = cross_entropy(model.eval(), pack(tokenizer, texts("heldout")))
    stated = json.loads((MODEL_DIR / "card.json").read_text())["held_out_cross_entropy_nats"]
    assert loss == pytest.approx(stated, abs=1e-3)
    assert loss <= 3.0
