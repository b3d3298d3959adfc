"""Predicted memory against that of real trainers and producers: within the margin that is left for it.

Each is a process of its own. The part that every process has (`PROCESS`) is left out: it would hide the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from footprint import MIB, measured, trainer_mib, training, trial_of, values
from trials import random_sae

from gsae_ray.capacity.memory import MARGIN, PROCESS, producer_memory, trial_memory
from gsae_ray.capacity.synthetic import SyntheticCost
from gsae_ray.config.sweep import Sweep
from gsae_ray.saes import to_bytes

pytestmark = pytest.mark.slow
PRODUCER = """
from pathlib import Path
from gsae_ray.activations.producer import Producer
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.evaluation.feature_statistics import FeatureStatistics, Looked
from gsae_ray.evaluation.task import Evaluate, Probe
from gsae_ray.config.sweep import Sweep
plan = prepare(Sweep.model_validate({values!r}), Path({folder!r}))
sites = sorted(plan.layout.widths)
before = rss()
producer = Producer(producer_spec(plan))
if {what!r} == "produce":
    made = producer.produce(0, sites)
elif {what!r} == "look at features":
    sae, trial = Path({folder!r}, "sae"), plan.trials[0]
    looked = Looked(trial.site, sae, sae / "features", "", "", trial.d_sae, 2 * trial.d_in)
    producer.run(FeatureStatistics((looked,), plan.sweep.evaluation.features, plan.sweep.language_model, ""))
else:
    cfg, weights = (Path({folder!r}, name).read_bytes() for name in ("cfg", "weights"))
    sae = plan.trials[0].site, cfg.decode(), weights
    producer.run(Probe(*sae, plan.source.probes) if {what!r} == "probe" else Evaluate(*sae))
peak_mib(before)
"""


@pytest.mark.parametrize(
    ("architecture", "n", "width", "batch", "engine"),
    [
        ("gated", 256, 65_536, 128, "dense"),
        ("gated", 256, 16_384, 4096, "dense"),
        ("standard", 256, 65_536, 128, "dense"),
        ("standard", 256, 16_384, 4096, "dense"),
        ("topk", 256, 16_384, 4096, "dense"),
        ("batchtopk", 256, 16_384, 4096, "dense"),
        ("matryoshka_batchtopk", 256, 16_384, 4096, "dense"),
        ("jumprelu", 256, 16_384, 4096, "dense"),
        ("p_anneal", 256, 16_384, 4096, "dense"),
        ("standard", 256, 16_384, 1024, "sparse-cpu"),
        ("gated", 256, 16_384, 2048, "sparse-cpu"),
        ("gated", 1024, 8_192, 512, "sparse-cpu"),
    ],
)
def test_a_trial(architecture: str, n: int, width: int, batch: int, engine: str, tmp_path: Path) -> None:
    given = training(architecture, width, batch)
    given["training"]["engine"] = engine
    found = trainer_mib(given, n, tmp_path)
    predicted = (trial_memory(trial_of(given, n), on_gpu=False).host - PROCESS) / MIB
    assert MARGIN * found < predicted < found / MARGIN


@pytest.mark.parametrize("what", ["produce", "evaluate", "evaluate the weights", "probe", "look at features"])
def test_a_producer(what: str, tmp_path: Path) -> None:
    from gsae_ray.language_model.hooks import site_widths
    from gsae_ray.language_model.loading import load_skeleton

    cases: dict[str, dict[str, Any]] = {
        "produce": {
            "sites": {"layers": [0, 1, 2, 3], "points": ["mlp_post"]},
            "dataset": {"name": "builtin", "shuffle_tokens": 65_000},
            "training": {"tokens": 65_000, "batch_size": 10},
        },
        "evaluate": {
            "saes": [{"architecture": "gated", "widths": [32_768], "l1_coefficient": [1]}],
            "evaluation": {"tokens": 4096, "batch": 8},
        },
        "evaluate the weights": {  # which take more than the features of a batch
            "sites": {"layers": [1], "points": ["mlp_post"]},
            "saes": [{"architecture": "gated", "widths": [65_536], "l1_coefficient": [1]}],
            "evaluation": {"tokens": 1024, "batch": 1},
        },
        "probe": {
            "sites": {"layers": [1], "points": ["mlp_post"]},
            "saes": [{"architecture": "gated", "widths": [512], "l1_coefficient": [1]}],
            "evaluation": {"tokens": 1024, "batch": 1, "probes": [{"name": "p", "data": "builtin", "tokens": 60_000}]},
        },
        "look at features": {  # of which half are active on a row: the most that there can be
            "saes": [{"architecture": "standard", "widths": [32_768], "l1_coefficient": [1]}],
            "evaluation": {"tokens": 1024, "batch": 1, "features": True},
        },
    }
    given = values(**cases[what])
    sweep = Sweep.model_validate(given)
    skeleton = load_skeleton(sweep.language_model)
    widths = {site.name: width for site, width in site_widths(skeleton, sweep.used_sites).items()}
    block = 65_000 * 4 * sum(widths.values()) if what == "produce" else 0
    trials = [] if what == "produce" else sweep.expand(site_widths(skeleton, sweep.used_sites), {})
    for trial in trials:
        cfg, weights = to_bytes(random_sae(trial))
        (tmp_path / "cfg").write_text(cfg)
        (tmp_path / "weights").write_bytes(weights)
        random_sae(trial).save(tmp_path / "sae")
    predicted = (producer_memory(sweep, skeleton, widths, block, trials).host - PROCESS) / MIB
    found = measured(PRODUCER.format(values=given, folder=str(tmp_path), what=what))
    assert MARGIN * found < predicted < found / MARGIN


@pytest.mark.parametrize("what", ["produce", "evaluate"])
def test_a_producer_of_synthetic_rows(what: str, tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "produce": {"dataset": {"shuffle_tokens": 200_000}, "training": {"tokens": 200_000, "batch_size": 10}},
        "evaluate": {"saes": [{"architecture": "gated", "widths": [32_768], "l1_coefficient": [1]}]},
    }
    model = {"name": "synthetic", "d_in": 256, "features": 512}
    given = values(model=model, **{"dataset": {}, "sites": {}, "evaluation": {"tokens": 5000}, **cases[what]})
    source = SyntheticCost(Sweep.model_validate(given))
    trials = [] if what == "produce" else source.sweep.expand(source.widths, {})
    for trial in trials:
        cfg, weights = to_bytes(random_sae(trial))
        (tmp_path / "cfg").write_text(cfg)
        (tmp_path / "weights").write_bytes(weights)
    block = 200_000 * 4 * 256 if what == "produce" else 0
    predicted = (source.producer_memory(block, trials).host - PROCESS) / MIB
    found = measured(PRODUCER.format(values=given, folder=str(tmp_path), what=what))
    assert MARGIN * found < predicted < found / MARGIN, (found, predicted)
