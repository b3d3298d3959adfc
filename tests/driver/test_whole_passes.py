"""Where evaluations run the whole model, the user of the launch is told, once, and what they give is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden import run
from saved_models import save
from tiny_models import PER_LAYER
from transformers import Gemma4TextConfig

from gsae_ray.capacity.forecast import forecast
from gsae_ray.config.sweep import Sweep

LINE = "evaluations after layer 1 run all 3 layers of the model, not only those that follow: "


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two SAEs before a layer that takes its keys and values from one before it, and one where that is no matter."""
    config = Gemma4TextConfig(**{**PER_LAYER, "vocab_size": 4096, "vocab_size_per_layer_input": 4096})
    entry = {"architecture": "standard", "widths": [16]}
    return {
        "name": "shared_keys",
        "model": {"name": str(save(tmp_path_factory.mktemp("model"), config)), "context_size": 32},
        "dataset": {"name": "builtin", "shuffle_tokens": 1024},
        "sites": {"layers": [0, 1], "points": ["resid_post"]},
        "saes": [
            {**entry, "l1_coefficient": [1, 2], "sites": {"layers": [1], "points": ["resid_post"]}},
            {**entry, "l1_coefficient": [1], "sites": {"layers": [0], "points": ["resid_post"]}},
        ],
        "training": {"tokens": 2048, "batch_size": 64, "lr": 1e-3},
        "evaluation": {"tokens": 256, "batch": 4},
        "trials": {"max_concurrent": 1},
    }


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_launch_tells_it_once(sweep: dict[str, Any], tmp_path: Path) -> None:
    result = run(sweep, tmp_path)
    assert result.failures == {} and len(result.frontier()) == 3
    (events,) = (tmp_path / "runs").glob("shared_keys/launches/*/events.jsonl")
    told = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert [event for event in told if "layers of the model" in event] == [
        LINE + "passes of this model that begin there give other logits"
    ]


@pytest.mark.slow
def test_plan_tells_it_and_counts_the_whole_model(sweep: dict[str, Any]) -> None:
    cost = forecast(Sweep.model_validate(sweep), slots=1)
    assert LINE + "some of those take keys and values from layers before them" in cost.notices
    assert sum("layers of the model" in notice for notice in cost.notices) == 1

    def of_an_sae(entry: dict[str, Any]) -> float:
        """FLOPs of the evaluation of one more SAE."""
        more, fewer = (
            forecast(Sweep.model_validate({**sweep, "saes": [{**entry, "l1_coefficient": grid}]}), slots=1)
            for grid in ([1, 2], [1])
        )
        return more.evaluation_flops - fewer.evaluation_flops

    after_1, after_0 = map(of_an_sae, sweep["saes"])
    assert after_1 > after_0, "three layers in place of one, and two"
