"""SAEs that ask for an L0: how near they come to it, and what the search for the coefficient costs.

    python tests/benchmarks/target_l0.py --work DIR [--architectures NAME...] [--targets L0...] [--width M]
        [--set KEY=VALUE]... [--json FILE]

For each architecture and target two SAEs on the same rows: one with `target_l0`, and one with the coefficient that the
first one found, given from the start. Of the first: held-out L0 ÷ target, L0 on the last 65,536 training rows ÷ target,
and its held-out FVU ÷ that of the SAEs with a given coefficient at the same L0, which is read between them (linear in
log FVU by log L0; beyond the ends, by the nearest two). Of the second: its L0 ÷ target. `--set` takes another model,
text or site. Trained without Ray, one after the other.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.head_to_head import SWEEP, KeptSource, print_table
from producers import model_of, tokens_of

from gsae_ray.activations.producer import Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.config.load import load_sweep
from gsae_ray.config.site import Site
from gsae_ray.config.trial import TrialSpec
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.errors import NumericError
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.language_model.massive_norms import square_norms, takes_part
from gsae_ray.saes import REGISTRY, SAE
from gsae_ray.training.trainer import Trainer

WIDER = 1.5
"""Widths of other SAEs ÷ that of gated ones: about the same compute."""
TRAIN_ROWS = 65_536


def plan_of(architecture: str, values: dict[str, Any], args: argparse.Namespace) -> PreparedSweep:
    """The sweep of one architecture, all values of its sparsity."""
    width = args.width if architecture == "gated" else round(WIDER * args.width)
    entry = {"architecture": architecture, "widths": width, **values}
    given = [f"saes={json.dumps([entry])}", "training.engine=auto", *args.set]
    return prepare(load_sweep(SWEEP, given), args.work)


@torch.no_grad()
def train_l0(sae: SAE, plan: PreparedSweep, source: KeptSource, trial: TrialSpec) -> float:
    """L0 of a finished SAE on the last training rows."""
    stream = RowStream(source, plan.layout, trial.site)
    rows = min(TRAIN_ROWS, trial.training.trained_tokens)
    stream.position = trial.training.trained_tokens - rows
    fired = taking_part = 0
    limit = source.statistics()[trial.site].norms.limit
    for _ in range(rows // 4096 or 1):
        x_BD = stream.read(min(4096, rows)).float()
        x_BD = x_BD[takes_part(square_norms(x_BD), limit)]
        fired += int((sae.encode(x_BD) > 0).sum())
        taking_part += len(x_BD)
    return fired / taking_part


def train(trial: TrialSpec, plan: PreparedSweep, source: KeptSource) -> tuple[SAE, dict[str, float]]:
    """The finished SAE, and its last metric row."""
    trainer = Trainer(trial, RowStream(source, plan.layout, trial.site))
    row: dict[str, float] = {}
    while not trainer.done:
        row = trainer.train_interval()
    return trainer.finished_sae({}), row


def at_l0(l0: float, curve: list[tuple[float, float]]) -> float:
    """FVU at an L0, between SAEs of which (L0, FVU) are known."""
    x, y = (np.log(np.array(values)) for values in zip(*sorted(curve), strict=True))
    if len(x) < 2:
        return math.nan
    place = int(np.clip(np.searchsorted(x, math.log(l0)), 1, len(x) - 1))
    slope = (y[place] - y[place - 1]) / (x[place] - x[place - 1])
    return math.exp(y[place] + slope * (math.log(l0) - x[place]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="tokens")
    parser.add_argument("--architectures", nargs="+", default=["standard", "gated", "jumprelu", "p_anneal"])
    parser.add_argument("--targets", nargs="+", type=float, default=[8, 16, 32, 64, 96])
    parser.add_argument("--width", type=int, default=512, help="of gated SAEs; others are 1.5 times as wide")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the sweep")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    base = plan_of("standard", {"target_l0": args.targets}, args)
    producer = Producer(producer_spec(base))
    source = KeptSource(producer, base.trials[0].site)
    settings = base.sweep
    evaluator = Evaluator(
        model_of(producer),
        tokens_of(base).heldout(),
        tokens_of(base).kept,
        settings.evaluation.batch,
        settings.dataset.max_norm,
    )
    rows: list[dict[str, Any]] = []
    for architecture in args.architectures:
        plan = plan_of(architecture, {"target_l0": args.targets}, args)
        coefficient = str(REGISTRY[architecture].sparsity_hyperparameter)
        found = []
        for trial in plan.trials:
            started = time.perf_counter()
            row: dict[str, Any] = {"architecture": architecture, "target": trial.sparsity}
            rows.append(row)
            try:
                sae, last = train(trial, plan, source)
            except NumericError as error:
                row["failure"] = str(error)
                print(f"{architecture} {trial.sparsity:g}: {error}", flush=True)
                continue
            evaluation = evaluator.evaluate(Site(trial.site), sae).metrics
            row |= {"found": last["found_coefficient"], "l0": evaluation["l0"], "fvu": evaluation["fvu"]}
            row |= {"train_l0": train_l0(sae, plan, source, trial), "seconds": time.perf_counter() - started}
            given = plan_of(architecture, {coefficient: row["found"]}, args)
            sae, _ = train(given.trials[0], given, source)
            evaluation = evaluator.evaluate(Site(trial.site), sae).metrics
            row |= {"given_l0": evaluation["l0"], "given_fvu": evaluation["fvu"]}
            found.append(row)
            print(json.dumps(row), flush=True)
        curve = [(row["given_l0"], row["given_fvu"]) for row in found]
        for row in found:
            row["fvu_ratio"] = row["fvu"] / at_l0(row["l0"], curve)
    table = [
        [row["architecture"], f"{row['target']:g}", f"{row['found']:.4g}", f"{row['l0'] / row['target']:.3f}"]
        + [f"{row['train_l0'] / row['target']:.3f}", f"{row['fvu']:.4f}", f"{row['fvu_ratio']:.3f}"]
        + [f"{row['given_l0'] / row['target']:.3f}"]
        if "found" in row
        else [row["architecture"], f"{row['target']:g}", "failed", "", "", "", "", ""]
        for row in rows
    ]
    columns = ["architecture", "target", "λ found", "held-out L0 ÷ target", "training L0 ÷ target", "FVU"]
    print_table([*columns, "FVU ÷ of given λ", "L0 ÷ target, λ given"], table)
    if args.json:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
        args.json.write_text(json.dumps({"versions": versions, "set": args.set, "saes": rows}, indent=2), "utf-8")


if __name__ == "__main__":
    main()
