"""A producer whose model is cut into parts, as on several GPUs, gives the same rows and metrics.

On the CPU, through the same hooks. Not run for want of GPUs: `producers.gpus` of 1 or more, activations of a forward
pass on different devices, and the refusal of a model that the GPUs have no room for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from producers import model_of, tokens_of, with_batch
from trials import random_sae

from gsae_ray.activations.producer import Producer
from gsae_ray.actors import producer_actor
from gsae_ray.actors.producer_actor import ProducerActor
from gsae_ray.config.site import POINTS, Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.language_model.loading import load_model
from gsae_ray.saes import SAE

SITES = [Site.of_point(layer, point).name for layer in (1, 2) for point in POINTS]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PreparedSweep:
    sweep = Sweep.model_validate(
        {
            "name": "parts",
            "model": {"name": "builtin", "context_size": 32},
            "dataset": {"name": "builtin"},
            "sites": {"layers": [1, 2], "points": list(POINTS)},
            "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": 1.0}],
            "training": {"tokens": 1024, "batch_size": 64, "lr": 1e-3},
            "evaluation": {"tokens": 256},
        }
    )
    return prepare(sweep, tmp_path_factory.mktemp("parts"))


@pytest.fixture
def in_parts(plan: PreparedSweep, tmp_path: Path) -> Producer:
    """Through the hooks that move what passes between the parts; the last two layers come from disk at each forward."""
    producer = Producer(producer_spec(plan))
    parts = {
        "gpt_neox.embed_in": "cpu",
        "gpt_neox.emb_dropout": "cpu",
        "gpt_neox.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    parts |= {"gpt_neox.final_layer_norm": "cpu"}
    parts |= {f"gpt_neox.layers.{layer}": "cpu" if layer < 2 else "disk" for layer in range(4)}
    accelerate.dispatch_model(model_of(producer), parts, main_device="cpu", offload_dir=tmp_path)
    assert model_of(producer).gpt_neox.layers[2].mlp.dense_h_to_4h.weight.is_meta
    return producer


def test_a_model_in_parts_makes_the_same_rows(plan: PreparedSweep, in_parts: Producer) -> None:
    statistics, chunks = Producer(producer_spec(plan)).produce(0, SITES)
    statistics_in_parts, chunks_in_parts = in_parts.produce(0, SITES)
    for chunk, in_part in zip(chunks, chunks_in_parts, strict=True):
        assert np.array_equal(chunk, in_part)
    for site in SITES:
        assert np.array_equal(statistics[site].mean, statistics_in_parts[site].mean)


def test_a_producer_tells_how_many_rows_are_made(plan: PreparedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_batch(producer_spec(plan), 3)
    told: list[int] = []
    statistics, chunks = Producer(spec).produce(0, SITES[:1], told.append)
    kept_S = tokens_of(plan).kept(tokens_of(plan).block(0)).sum(1).tolist()
    assert told == [sum(kept_S[:end]) for end in range(3, len(kept_S) + 3, 3)]
    assert told[-1] == plan.layout.rows[0] == sum(len(chunk) for chunk in chunks)

    class Store:
        """In the place of its actor."""

        def __init__(self) -> None:
            self.call = self
            self.calls: list[tuple[Any, ...]] = []

        def remote(self, *call: Any) -> None:
            self.calls.append(call)

    shell = ProducerActor(spec)
    for pause_s, calls in ((-1.0, [("made", 0, rows) for rows in told]), (3600.0, [])):
        monkeypatch.setattr(producer_actor, "REPORT_INTERVAL_S", pause_s)
        store = Store()
        shell.produce(0, SITES[:1], store)
        assert store.calls == calls


def test_a_model_in_parts_evaluates_the_same(plan: PreparedSweep, in_parts: Producer) -> None:
    def evaluate(model: torch.nn.Module, sae: SAE) -> Evaluation:
        return Evaluator(model, tokens_of(plan).heldout(), tokens_of(plan).kept, 4).evaluate(
            Site(sae.cfg.site or ""), sae
        )

    whole = load_model(plan.sweep.language_model)
    for trial in plan.trials[::5]:
        assert evaluate(model_of(in_parts), random_sae(trial)) == evaluate(whole, random_sae(trial))


def test_one_device_has_no_hooks_in_its_way(plan: PreparedSweep) -> None:
    model = model_of(Producer(producer_spec(plan)))
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
