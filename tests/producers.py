"""Producers of a language model, as tests look into them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from transformers import PreTrainedModel

from gsae_ray.activations.language_model_source import LanguageModelSource, LanguageModelSpec
from gsae_ray.activations.producer import Producer, ProducerSpec
from gsae_ray.config.sweep import Sweep
from gsae_ray.data.tokens import TokenStore
from gsae_ray.driver.prepare import PreparedSweep, prepare


def source_of(producer: Producer) -> LanguageModelSource:
    """Where it gets its rows from."""
    assert isinstance(producer.source, LanguageModelSource)
    return producer.source


def tokens_of(prepared: PreparedSweep) -> TokenStore:
    """The tokens that a sweep's language model reads."""
    spec = prepared.source.spec
    assert isinstance(spec, LanguageModelSpec)
    return spec.tokens


def model_of(producer: Producer) -> PreTrainedModel:
    """The language model that it runs."""
    return source_of(producer).model


def with_batch(spec: ProducerSpec, batch: int) -> ProducerSpec:
    """The spec with so many contexts a forward pass."""
    return dataclasses.replace(spec, source=dataclasses.replace(spec.source, batch=batch))  # type: ignore[type-var]


def small_plan(folder: Path) -> PreparedSweep:
    """A sweep of one SAE at one site of the built-in model, on a few thousand rows."""
    sweep = Sweep.model_validate(
        {
            "name": "small",
            "model": {"name": "builtin", "context_size": 32},
            "dataset": {"name": "builtin"},
            "sites": {"layers": [1], "points": ["resid_post"]},
            "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": 1.0}],
            "training": {"tokens": 4096, "batch_size": 64, "lr": 1e-3},
            "evaluation": {"tokens": 256},
        }
    )
    return prepare(sweep, folder)
