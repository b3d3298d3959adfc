"""What `scheduler.stop_dominated` saves on a grid of learning rates and λ, and what it loses.

    python tests/benchmarks/scheduler.py --work DIR [--tokens N]

Runs the same sweep twice, whole and with the scheduler: 8 learning rates × 6 λ × 3 seeds of a gated SAE on the built-in
model. Prints the tokens that trials trained on in the second, ÷ those of the first, and the SAEs of the first one's
frontier that the second has stopped. Two storages: nothing of one is used by the other.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

import gsae_ray
from gsae_ray.config.sweep import Sweep
from gsae_ray.storage.trial_directory import TrialDirectory

RATES = [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3]
SWEEP: dict[str, Any] = {
    "name": "grid",
    "model": {"name": "builtin"},
    "dataset": {"name": "builtin"},
    "sites": {"layers": [2], "points": ["resid_post"]},
    "saes": [{"architecture": "gated", "widths": [256], "l1_coefficient": [1, 1.5, 2.2, 3.3, 5, 7.5]}],
    "training": {"tokens": 100_000, "batch_size": 128, "lr": RATES, "seeds": [0, 1, 2], "engine": "auto"},
    "evaluation": {"tokens": 16_384},
}


def run(sweep: dict[str, Any], folder: Path) -> tuple[pd.DataFrame, int, float]:
    """The frontier, all tokens that trials trained on, and seconds."""
    folder.mkdir(parents=True)
    started = time.perf_counter()
    uri = f"sqlite:///{folder}/mlflow.db"
    result = gsae_ray.run(
        Sweep.model_validate(sweep), storage=folder / "runs", tracking_uri=uri, console=Console(quiet=True)
    )
    seconds = time.perf_counter() - started
    trained = 0
    for path in (folder / "runs/grid/trials").iterdir():
        rows, _ = TrialDirectory(path).rows()
        trained += max((row["step"] for row in rows), default=0)
    return result.frontier(), trained, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="storages and MLflow; must not exist")
    parser.add_argument("--tokens", type=int, default=SWEEP["training"]["tokens"], help="of a trial")
    args = parser.parse_args()
    sweep = {**SWEEP, "training": {**SWEEP["training"], "tokens": args.tokens}}
    whole, tokens, seconds = run(sweep, args.work / "whole")
    part, fewer, less = run({**sweep, "scheduler": {"stop_dominated": True}}, args.work / "stopped")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ray", "torch"))
    print(f"{versions}; {len(whole)} trials of {args.tokens:,} tokens")
    print(
        f"tokens trained on: {tokens:,} and {fewer:,}: {1 - fewer / tokens:.1%} saved; {seconds:.0f} s and {less:.0f} s"
    )
    front = whole[whole["on_frontier"]]
    lost = front[~front["trial"].isin(part["trial"])]
    print(f"{len(whole) - len(part)} trials stopped; of {len(front)} on the whole frontier {len(lost)} are not there")
    for row in lost.itertuples():
        print(f"  lost: {row.trial}: L0 {row.l0:.4g}, loss recovered {row.loss_recovered:.4f}")


if __name__ == "__main__":
    main()
