"""What sparse probes tell of SAEs: AUC and F1 of 1 and 5 features, and densities, architectures × L0 × seeds.

    python tests/benchmarks/probes.py --work WORK --set 'training.seeds=[0,1,2]'

runs `sweeps/architectures.yaml` with `evaluation.probes: builtin`, and prints a row for each architecture and sparsity:
means over seeds and, of AUC, the standard deviation over them (n − 1); then the baselines, which are of the activations
themselves, with 95 % intervals over documents. What is trained in WORK already, by the same sweep without probes too,
is not trained again: only the probes are fitted. Another model and text by `--set`, as on docs/architectures.md:

    python tests/benchmarks/probes.py --work WORK --set name=architectures-smollm2 --set model.name=WORK/smollm2 …
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from rich.console import Console

from gsae_ray.config.load import load_sweep
from gsae_ray.driver import launch
from gsae_ray.results.seeds import over_seeds

SWEEP = Path(__file__).parents[2] / "sweeps/architectures.yaml"
COLUMNS = {
    "l0": "L0",
    "loss_recovered": "loss recovered",
    "probe_auc_1": "AUC, k = 1",
    "probe_auc": "AUC, k = 5",
    "probe_f1_1": "F1, k = 1",
    "probe_f1": "F1, k = 5",
    "dead_heldout": "dead",
    "dense_heldout": "dense",
}
BASELINES = {"probe_auc_raw_1": "1 coordinate", "probe_auc_raw_5": "5 coordinates", "probe_auc_raw": "all coordinates"}


def cell(row: pd.Series[float], name: str) -> str:
    """A mean over seeds, of AUC with how far they differ."""
    if name == "l0":
        return f"{row[name]:.1f}"
    return f"{row[name]:.3f}" + (f" ± {row[f'{name}_spread']:.3f}" if name.startswith("probe_auc") else "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--work", type=Path, required=True, help="where storage (WORK/runs) and MLflow's store are kept"
    )
    parser.add_argument("--set", action="append", default=[], help="a key of the sweep file, as of `gsae-ray run`")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    sweep = load_sweep(SWEEP, ["evaluation.probes=builtin", *arguments.set])
    uri = f"sqlite:///{(arguments.work / 'mlflow.db').absolute()}"
    result = launch.run(sweep, storage=arguments.work / "runs", tracking_uri=uri, console=Console(stderr=True))
    rows = result.frontier()
    print(f"| SAE | seeds | {' | '.join(COLUMNS.values())} |\n|{'---|' * (2 + len(COLUMNS))}")
    for _, row in over_seeds(rows).sort_values(["site", "architecture", "l0"]).iterrows():
        print(f"| {row['architecture']} | {row['seeds']} | {' | '.join(cell(row, name) for name in COLUMNS)} |")
    print("\n| site | probes on the activations | AUC |\n|---|---|---|")
    for site, group in rows.groupby("site"):
        for name, what in BASELINES.items():
            value, low, high = (group[column].iloc[0] for column in (name, f"{name}_low", f"{name}_high"))
            print(f"| `{site}` | {what} | {value:.3f} [{low:.3f}, {high:.3f}] |")


if __name__ == "__main__":
    main()
