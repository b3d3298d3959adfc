"""Small sweeps on activations that lie on disk, and on the model that these are of; their trials alone, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.errors import UserError
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.saes import SAE, to_bytes
from gsae_ray.training.trainer import Trainer


def on_model(**changes: Any) -> dict[str, Any]:
    sweep = {
        "name": "on_model",
        "model": {"name": "builtin", "context_size": 32},
        "dataset": {"name": "builtin", "seed": 3, "shuffle_tokens": 1000},
        "sites": {"layers": [1, 2], "points": ["resid_post"]},
        "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": [1.0, 4.0]}],
        "training": {"tokens": 3000, "batch_size": 64, "lr": 1e-3},
        "evaluation": {"tokens": 256},
        "producers": {"batch": 8},
    }
    return {**sweep, **changes}


def on_files(path: Path | str, layers: list[int] = [1, 2], **changes: Any) -> dict[str, Any]:  # noqa: B006
    """Changes of the section `activations` begin with that."""
    activations = {key: value for key, value in changes.items() if key in ("format", "column", "heldout")}
    activations |= {key: value for key, value in changes.items() if key.startswith("group_")}
    others = {key: value for key, value in changes.items() if key not in activations}
    sweep = on_model(name="on_files", sites={"layers": layers, "points": ["resid_post"]}, **others)
    keep = {key: value for key, value in sweep.items() if key not in ("model", "dataset", "producers") or key in others}
    return {**keep, "activations": {"path": str(path), **activations}}


def prepared(sweep: dict[str, Any], storage: Path, said: list[str] | None = None) -> PreparedSweep:
    return prepare(Sweep.model_validate(sweep), storage, ([] if said is None else said).append)


def trained(of: PreparedSweep, trial: int) -> SAE:
    """A trial's SAE, alone in this process."""
    spec, producer = of.trials[trial], Producer(producer_spec(of))
    trainer = Trainer(spec, RowStream.of(LocalBlockReader(producer, *spec.sites), of.layout, spec.sites))
    while not trainer.done:
        trainer.train_interval()
    return trainer.finished_sae({})


def evaluated(of: PreparedSweep, site: str, sae: SAE) -> Evaluation:
    evaluation: Evaluation = Producer(producer_spec(of)).run(Evaluate(site, *to_bytes(sae)))
    return evaluation


def complaint(sweep: dict[str, Any], storage: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepared(sweep, storage)
    assert "\n" not in str(caught.value)
    return str(caught.value)
