"""Sweeps on text over checkpoints of multimodal models: from the plan to the evaluation, in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from producers import model_of, tokens_of
from saved_models import SIZE, edit_config, settings
from selection import quick
from torch import nn
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)
from trials import random_sae

from gsae_ray.activations.producer import Producer
from gsae_ray.builtin import MODEL_DIR
from gsae_ray.capacity.forecast import forecast
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.data.vocabulary import Vocabulary
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.language_model.hooks import by_module, capture
from gsae_ray.language_model.loading import load_config, load_skeleton

LOCAL = {**SIZE, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    **{**SIZE, "layer_types": ["linear_attention", "full_attention"]},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}


def gemma3() -> PreTrainedModel:
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=LOCAL, vision_config={**VISION, "image_size": 28}, mm_tokens_per_image=4)
    )


def gemma4() -> PreTrainedModel:
    text = {**LOCAL, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 4096, "global_head_dim": 16}
    vision = {**VISION, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 64}
    return Gemma4ForConditionalGeneration(Gemma4Config(text_config=text, vision_config=vision))


def gemma4_unified() -> PreTrainedModel:
    return Gemma4UnifiedForConditionalGeneration(Gemma4UnifiedConfig(text_config={**LOCAL, "global_head_dim": 16}))


def qwen3_5() -> PreTrainedModel:
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=LINEAR, vision_config=QWEN_VISION))


def qwen3_5_moe() -> PreTrainedModel:
    config = Qwen3_5MoeConfig(text_config={**LINEAR, **EXPERTS}, vision_config=QWEN_VISION)
    return Qwen3_5MoeForConditionalGeneration(config)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A multimodal model, saved as its own class, and a sweep over it that is prepared."""

    path: Path
    model: PreTrainedModel
    plan: PreparedSweep


@pytest.fixture(
    scope="module",
    params=quick([gemma3, gemma4, gemma4_unified, qwen3_5, qwen3_5_moe], lambda make: make is gemma3),
    ids=lambda m: m.__name__,
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    make: Callable[[], PreTrainedModel] = request.param
    folder = tmp_path_factory.mktemp(make.__name__)
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder / "model")
    sweep = Sweep.model_validate(
        {
            "name": "multimodal",
            "model": {"name": str(folder / "model"), "context_size": 32},
            "dataset": {"name": "builtin"},
            "sites": {"layers": "all", "points": ["resid_post"]},
            "saes": [{"architecture": "gated", "widths": [32], "l1_coefficient": 1.0}],
            "training": {"tokens": 1024, "batch_size": 64, "lr": 1e-3},
            "evaluation": {"tokens": 256},
        }
    )
    return Checkpoint(folder / "model", model, prepare(sweep, folder))


def test_the_plan_is_that_of_the_language_model_and_the_memory_that_of_all_that_is_loaded(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    sweep, text = checkpoint.plan.sweep, checkpoint.model.config.get_text_config()
    text.save_pretrained(tmp_path)
    alone_sweep = sweep.model_copy(update={"model": sweep.language_model.model_copy(update={"name": str(tmp_path)})})
    alone, plan = (forecast(each, slots=1) for each in (alone_sweep, sweep))
    besides = sum(
        sum(sign * p.numel() for p in load_skeleton(settings(path)).parameters())
        for sign, path in ((1, checkpoint.path), (-1, tmp_path))
    )
    assert plan.producer.host == alone.producer.host + 4 * besides
    # The pace is measured.
    same = dataclasses.replace(plan, producer=alone.producer, pace=None)
    assert same == dataclasses.replace(alone, pace=None)
    assert (plan.trials, plan.kinds[0].d_in) == (text.num_hidden_layers, text.hidden_size)


def test_rows_are_the_activations_of_the_checkpoint(checkpoint: Checkpoint) -> None:
    """Also where transformers loads its language model alone."""
    producer = Producer(producer_spec(checkpoint.plan))
    tokens_BT = tokens_of(checkpoint.plan).block(0)[:4]
    with torch.no_grad():
        expected = checkpoint.model(tokens_BT, use_cache=False)
        torch.testing.assert_close(model_of(producer)(tokens_BT, use_cache=False).logits, expected.logits)
        hidden = checkpoint.model(tokens_BT, use_cache=False, output_hidden_states=True).hidden_states
    site = Site.of_point(0, "resid_post")
    module = Site(checkpoint.plan.source.modules[site.name])  # of what transformers loads, and SAELens with it
    assert module == by_module(model_of(producer), site) and module.layer is None
    torch.testing.assert_close(capture(model_of(producer), tokens_BT, [site])[site], hidden[1])
    _, (chunk,) = producer.produce(0, [site.name])
    kept_SW = tokens_of(checkpoint.plan).kept(tokens_BT)
    assert chunk.shape[1] == 16 and np.isfinite(chunk).all()
    rows = {row.tobytes() for row in chunk}
    assert all(row.numpy().tobytes() in rows for row in capture(model_of(producer), tokens_BT, [site], kept_SW)[site])


def test_an_sae_is_spliced_and_evaluated(checkpoint: Checkpoint) -> None:
    plan = checkpoint.plan
    model = model_of(Producer(producer_spec(plan)))
    for trial in plan.trials:
        evaluator = Evaluator(model, tokens_of(plan).heldout(), tokens_of(plan).kept, 4)
        metrics = evaluator.evaluate(Site(trial.site), random_sae(trial)).metrics
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics["ce_spliced"] != metrics["ce_clean"] != metrics["ce_zero"]


def test_without_a_tokenizer_special_tokens_are_those_of_the_checkpoint_and_of_its_language_model(
    tmp_path: Path,
) -> None:
    """As in the checkpoints of Gemma 3, where only the outer configuration has the token that ends a turn."""
    text = {**LOCAL, "bos_token_id": 2, "eos_token_id": 1}
    Gemma3Config(text_config=text, vision_config=VISION, eos_token_id=[1, 106]).save_pretrained(tmp_path)
    vocabulary = Vocabulary.of(settings(tmp_path), is_text=False)
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad) == (2, 1, 0)
    assert vocabulary.special_ids == (0, 1, 2, 106)


def test_kernels_that_come_with_a_checkpoint_are_used_in_none_of_its_parts(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    checkpoint.model.config.save_pretrained(tmp_path)
    edit_config(tmp_path, attn_implementation="lab/kernel", experts_implementation="lab/kernel")
    config = load_config(settings(tmp_path, attn_implementation="eager"))
    for part in (config, config.get_text_config(), *filter(None, [getattr(config, "vision_config", None)])):
        assert (part._attn_implementation, part._experts_implementation) == ("eager", None)
