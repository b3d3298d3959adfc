"""What a report says, made up: SAEs on smooth curves, with intervals, trainings, references and failures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from gsae_ray.evaluation.bootstrap import low_and_high
from gsae_ray.results.columns import columns
from gsae_ray.results.frontier_table import FrontierTable
from gsae_ray.results.grids import at_edges
from gsae_ray.results.references import UNKNOWN
from gsae_ray.results.report.contents import Contents, answer
from gsae_ray.results.report.records import About, Series

SITES = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
SERVER = "http://127.0.0.1:5000/#/experiments/1/runs/"


def made_up_rows(
    kinds: Sequence[str] = ("gated", "standard"),
    sparsities: Sequence[float] = (1.0, 2.0, 4.0),
    rates: Sequence[float] = (1e-3,),
    seeds: int = 1,
    references: int = 0,
    name: str = "{kind}-l{sparsity:g}-{site}-lr{lr:g}-s{seed}",
) -> FrontierTable:
    """A frontier whose SAEs name no runs: they are compared without intervals."""
    rows = []
    grid = itertools.product(SITES, enumerate(kinds), sparsities, enumerate(rates), range(seeds))
    for site, (place, kind), sparsity, (step, lr), seed in grid:
        l0 = 60 / sparsity * (1 + 0.02 * seed) * (1 + 0.03 * step)
        recovered = 1 - 0.02 * (place + 1) * sparsity**0.7 * (1 + 0.1 * step) - 0.001 * seed
        row = {"site": site, "architecture": kind, "sparsity": sparsity, "lr": lr, "seed": seed, "origin": "own"}
        row |= {"trial": name.format(kind=kind, sparsity=sparsity, site=site, lr=lr, seed=seed), "run_id": ""}
        rows.append({**row, "l0": l0, "loss_recovered": recovered, "d_sae": 512, "tokens": 400_000})
    for number in range(references):
        about = {"site": SITES[0], "architecture": "topk", "origin": f"elsewhere/{number}", "trial": "", "run_id": ""}
        rows.append({**about, "l0": 20.0 + number, "loss_recovered": 0.95, "d_sae": 4096, "recipe": ""})
    texts = {"recipe": "norm_weighted/modern", "variant": "", "l1_units": "sum", "launch": "20260101-100000-aaaa"}
    table = pd.DataFrame([{**texts, **row} for row in rows], columns=columns())
    table["fvu"], table["gamma"] = 2 * (1 - table["loss_recovered"]), table["loss_recovered"]
    table["kl"], table["alive_fraction"] = 1 - table["loss_recovered"], 0.98
    for metric in ("l0", "loss_recovered", "gamma", "fvu", "kl"):
        for end, factor in zip(low_and_high(metric), (0.98, 1.02), strict=True):
            table[end] = table[metric] * factor
    table = table.assign(on_frontier=table["architecture"] == kinds[0], batch_size=128, snapshot=False)
    table = table.astype(dict.fromkeys(UNKNOWN, "Int64"))
    found = FrontierTable(table.sort_values(["site", "l0"]).reset_index(drop=True))
    found.attrs["notes"] = at_edges(found)
    return found


def training(points: int = 400) -> Series:
    """A training at 1000 tokens a second, an hour for 3,600,000 tokens."""
    steps = [1000 * (n + 1) for n in range(points)]
    loss = 3 + 10 * np.exp(-np.arange(points) / 50)
    return {
        "loss": list(zip(steps, loss.tolist(), strict=True)),
        "l0": [(step, 500.0 / (1 + n / 20)) for n, step in enumerate(steps)],
        "dead_fraction": [(step, 0.01) for step in steps],
        "tokens_per_s": [(step, 1000.0) for step in steps],
    }


def made_up(rows: pd.DataFrame | None = None, points: int = 400, failures: Sequence[tuple[str, str]] = ()) -> Contents:
    """All that a report says, of runs that a server has pages of."""
    rows = made_up_rows() if rows is None else rows
    told = answer(rows, None)
    rows["run_id"] = [f"run{number}" for number in range(len(rows))]
    runs = list(rows["run_id"])
    return Contents(
        experiment="made up",
        launch="20260101-100000-aaaa",
        rows=rows,
        answer=told,
        about=About({"model": "builtin", "dataset": "text"}, {"forward_ratio": 1.0, "evaluations": float(len(runs))}),
        trainings={run: training(points) for run in runs},
        failures=failures,
        stopped=[],
        ended_early=[],
        pages={run: f"{SERVER}{run}" for run in runs},
        missing=[],
        over_tokens=over_tokens(rows),
    )


def over_tokens(rows: pd.DataFrame) -> pd.DataFrame:
    """The table rows with a snapshot of each SAE after a quarter of its tokens, which has lost more."""
    own = pd.DataFrame(rows[rows["origin"] == "own"])
    early = own.assign(tokens=own["tokens"] // 4, snapshot=True, fvu=2 * own["fvu"], l0=1.5 * own["l0"])
    early["loss_recovered"] = 1 - 2 * (1 - early["loss_recovered"])
    return pd.concat([own.assign(snapshot=False), early], ignore_index=True)
