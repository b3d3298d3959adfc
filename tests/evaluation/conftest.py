"""A tiny random GPT-NeoX, held-out contexts, and their evaluator."""

from __future__ import annotations

import pytest
import torch
from slow_evaluation import CONTEXTS, LENGTH, SPECIAL, VOCABULARY, N, kept
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from gsae_ray.evaluation.evaluator import Evaluator


@pytest.fixture(scope="module")
def model() -> GPTNeoXForCausalLM:
    """Weights large enough that its predictions hang on every layer."""
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=N,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens_ET() -> Tensor:
    tokens = torch.randint(VOCABULARY, (CONTEXTS, LENGTH), generator=torch.Generator().manual_seed(1))
    tokens[0, 3] = tokens[4, LENGTH - 1] = tokens[7, 6] = tokens[7, 7] = SPECIAL
    return tokens


@pytest.fixture(scope="module")
def evaluator(model: GPTNeoXForCausalLM, tokens_ET: Tensor) -> Evaluator:
    return Evaluator(model, tokens_ET, kept, batch=4)
