"""Architectures against a known dictionary, in regimes from easy to hard: MCC, F1, FVU, absorption and splitting.

    python tests/benchmarks/synthetic.py --work WORK [--architectures gated standard] [--regimes easy] [--seeds 3]

Each regime is a sweep, each architecture an entry of it with a grid of sparsities. Of each seed that SAE is taken whose
L0 is nearest to the true one (by ratio), so that no architecture is helped by knowing the truth about directions; the
table has means over seeds, and standard deviations. What is done lies in WORK and is not done again; the same command
with more architectures trains only those.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import launch
from gsae_ray.saes import REGISTRY, trainable_architectures

EASY: dict[str, Any] = {"d_in": 64, "features": 128, "active": 4, "zipf": 0.5}
REGIMES: dict[str, dict[str, Any]] = {
    "easy": {},
    "superposition": {"features": 256, "active": 8},
    "zipf": {"zipf": 1.0},
    "correlated": {"correlation": {"groups": 16, "frequency": 0.1, "strength": 1.0}, "max_frequency": 0.1},
    "hierarchy": {"hierarchy": {"roots": 16, "branching": 3, "frequency": 0.2}},
    "exclusive hierarchy": {"hierarchy": {"roots": 16, "branching": 4, "frequency": 0.25, "exclusive": True}},
    "noise": {"noise": 1.0},
}
"""What differs from the easy one."""
GRIDS: dict[str, tuple[float, ...]] = {
    "gated": (2, 3, 5),
    "standard": (2, 3, 4),
    "p_anneal": (1.5, 2, 3),
    "jumprelu": (0.008, 0.016, 0.03),
}
"""Values of the hyperparameter that sets the sparsity; of architectures with a k it is the true L0."""
DEAD_AFTER = 10_000
"""`dead_after_tokens` of those: a tenth of so short a run, the default, is late for so small a dictionary."""
COLUMNS = ("mcc", "feature_precision", "feature_recall", "feature_f1", "fvu", "absorption", "splitting", "l0")


def grid(architecture: str, active: float) -> dict[str, list[float]]:
    """The sparsities of an architecture, as keys of an entry of `saes`."""
    key = REGISTRY[architecture].sparsity_hyperparameter
    assert key is not None, f"{architecture} has no hyperparameter for the sparsity"
    if key == "k":
        return {key: [round(active)], "dead_after_tokens": [DEAD_AFTER]}
    return {key: list(GRIDS[architecture])}


def sweep_of(regime: str, architectures: list[str], seeds: int, tokens: int) -> Sweep:
    model = {**EASY, **REGIMES[regime]}
    entries = [
        {"architecture": name, "widths": [model["features"]], **grid(name, model["active"])} for name in architectures
    ]
    training = {"tokens": tokens, "batch_size": 512, "lr": 3e-3, "seeds": list(range(seeds)), "engine": "dense"}
    return Sweep.model_validate(
        {
            "name": f"synthetic-{regime.replace(' ', '-')}",
            "model": {"name": "synthetic", **model},
            "saes": entries,
            "training": training,
            "evaluation": {"tokens": 50_000},
        }
    )


def nearest_to_the_truth(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each architecture and seed the SAE whose L0 is nearest to the true one, by ratio."""
    distance = (np.log(rows["l0"]) - np.log(rows["true_l0"])).abs()
    return rows.loc[distance.groupby([rows["architecture"], rows["seed"]]).idxmin()]


def cell(values: pd.Series[float]) -> str:
    """Mean ± standard deviation; empty where there is none."""
    if values.isna().all():
        return ""
    return f"{values.mean():.3f} ± {values.std(ddof=0):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="where storage and MLflow's store are kept")
    parser.add_argument("--architectures", nargs="+", default=["gated", "standard"], choices=trainable_architectures())
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=500_000)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    heads = [name.removeprefix("feature_") for name in COLUMNS]
    print(f"| regime | SAE | {' | '.join(heads)} |\n|{'---|' * (2 + len(heads))}", flush=True)
    for regime in arguments.regimes:
        sweep = sweep_of(regime, arguments.architectures, arguments.seeds, arguments.tokens)
        uri = f"sqlite:///{(arguments.work / 'mlflow.db').absolute()}"
        result = launch.run(sweep, storage=arguments.work / "runs", tracking_uri=uri, console=Console(stderr=True))
        rows = result.frontier()
        for name in COLUMNS:
            rows[name] = rows.get(name, float("nan"))
        chosen = nearest_to_the_truth(rows)
        (arguments.work / f"{sweep.name}.json").write_text(json.dumps(json.loads(chosen.to_json(orient="records"))))
        for architecture in arguments.architectures:
            own = chosen[chosen["architecture"] == architecture]
            print(f"| {regime} | {architecture} | {' | '.join(cell(own[name]) for name in COLUMNS)} |", flush=True)


if __name__ == "__main__":
    main()
