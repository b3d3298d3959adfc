"""SAEs of ours against those of dictionary_learning and SAELens, trained on the very same activations.

    python tests/benchmarks/head_to_head.py --work DIR --architecture NAME [--set KEY=VALUE]... [--ours NAME KEY=VALUE
        ...]... [--json FILE]

Same rows in the same order, same batch size, width, peak learning rate, steps and seeds; everything else is each
library's own (`neighbours.py` says what that is). `--ours` names a family of our SAEs and the keys of the entry in
`head_to_head.yaml` that differ; it may be given more than once. `--set` takes another model, text or site; the
entry is `saes.0`. The neighbours get an environment of their own (made in --environment, a few minutes), and what they
trained stays in --work, so that later runs train ours alone. Rows of massive norm, which ours leave out, are not among
theirs; as many of the first rows come again at the end.

Two frontiers are compared at equal quality, over the range that both cover: log L0, linear in log FVU (or in
log(1 − loss recovered)) between SAEs. The ratio is ours ÷ theirs, so below 1 is better. Intervals: 95 %, bootstrap over
held-out contexts, paired (all SAEs see the same draw), and over seeds where there is more than one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml
from numpy.typing import NDArray
from producers import model_of, tokens_of

from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.config.load import load_sweep
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.evaluation.metrics import METRICS
from gsae_ray.files import digest
from gsae_ray.language_model.loading import model_fingerprint
from gsae_ray.language_model.massive_norms import square_norms, takes_part
from gsae_ray.saes import SAE, load
from gsae_ray.saes.matryoshka_batchtopk import default_widths
from gsae_ray.training.trainer import Trainer

HERE = Path(__file__).parent
SWEEP = HERE / "head_to_head.yaml"
REQUIREMENTS = ["sae-lens==6.54.12", "dictionary-learning==0.1.0", "torch>=2.11,<2.14"]
BOTH = ("dictionary_learning", "sae_lens")
NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "gated": BOTH,
    "standard": ("dictionary_learning", "dictionary_learning_april", "sae_lens"),
    "topk": BOTH,
    "batchtopk": BOTH,
    "matryoshka_batchtopk": BOTH,
    "jumprelu": BOTH,
    "p_anneal": ("dictionary_learning", "dictionary_learning_lp_p"),
}
"""Architecture -> who has a trainer of it: StandardTrainerAprilUpdate is a second one, `Lp^p` a second penalty."""
ASKED_L0 = [4, 8, 16, 32]
"""Of JumpReLU SAEs of dictionary_learning, whose penalty knows no other sparsity."""
SHARED = ("prefix_widths", "p_end", "anneal_start")
"""Hyperparameters of ours that theirs have too."""
SCHEDULE = {"lr_warmup": 0.0, "lr_decay": 0.2, "l1_warmup": 0.05}
"""Of the neighbours, as fractions of the run: SAELens' tutorial. On these 3,125 steps no lr warm-up was best for gated
SAEs of dictionary_learning too (λ = 8: L0 → loss recovered 2.28 → .909; 5 %: 2.74 → .902; its defaults: 2.94 → .907).
"""
POINTS, DRAWS = 21, 2000
COSTS = {"FVU": lambda m: np.log(m["fvu"]), "loss recovered": lambda m: np.log1p(-m["loss_recovered"])}


# ---- training -------------------------------------------------------------------------------------------------------


class KeptSource(LocalBlockReader):
    """Every block is produced once, for all trials of this process."""

    def __init__(self, producer: Producer, site: str) -> None:
        super().__init__(producer, site)
        self._kept: dict[int, tuple[dict[str, SiteStatistics], list[NDArray[Any]]]] = {}

    def open(self, block: int) -> None:
        if block not in self._kept:
            self._kept[block] = self.producer.produce(block, self.sites)
        statistics, self._chunks = self._kept[block]
        self._statistics = self._statistics or statistics


def train(trial: TrialSpec, plan: PreparedSweep, source: KeptSource) -> SAE:
    trainer = Trainer(trial, RowStream(source, plan.layout, trial.site))
    while not trainer.done:
        trainer.train_interval()
    return trainer.finished_sae({})


def make_environment(directory: Path) -> Path:
    """Its Python. Both libraries live in one environment."""
    python, marker = directory / "bin" / "python", directory / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS)
    if not marker.is_file() or marker.read_text("utf-8") != wanted:
        print(f"making an environment in {directory}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", *REQUIREMENTS], check=True)
        # Of nnsight's dependencies; built for CUDA, it does not load beside a torch without, and nothing here needs it.
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True)
        marker.write_text(wanted, "utf-8")
    return python


def sweep_of(architecture: str, overrides: list[str]) -> Sweep:
    """The sweep file with the entry of this architecture alone."""
    entries = yaml.safe_load(SWEEP.read_text("utf-8"))["saes"]
    own = [entry for entry in entries if entry["architecture"] == architecture]
    return load_sweep(SWEEP, [f"saes={json.dumps(own)}", *overrides])


def neighbour_jobs(plan: PreparedSweep, grid: list[float] | None, directory: Path) -> list[dict[str, Any]]:
    """What the neighbours are to train: the plan's quantities, their recipes; `grid` in the place of our sparsities."""
    trial, producers = plan.trials[0], plan.sweep.producers
    data = [
        model_fingerprint(plan.sweep.language_model),
        tokens_of(plan).fingerprint,
        trial.site,
        producers.batch,
        producers.cpus,
    ]
    data.append(plan.sweep.dataset.max_norm)
    shared = {key: trial.hyperparameters[key] for key in SHARED if key in trial.hyperparameters}
    if trial.architecture == "matryoshka_batchtopk":
        shared["prefix_widths"] = shared["prefix_widths"] or default_widths(trial.d_sae)
    jobs = []
    for library in NEIGHBOURS[trial.architecture]:
        asks = trial.architecture == "jumprelu" and library == "dictionary_learning"
        for sparsity in grid or (ASKED_L0 if asks else sorted({trial.sparsity for trial in plan.trials})):
            for seed in plan.sweep.training.seeds:
                job = {"library": library, "architecture": trial.architecture, "sparsity": sparsity, "seed": seed}
                job |= {"d_sae": trial.d_sae, "lr": trial.training.lr, "steps": trial.training.steps, **shared}
                job |= {"batch_size": trial.training.batch_size, **SCHEDULE}
                name = f"{library}-{trial.architecture}-{sparsity:g}-seed{seed}"
                key = digest([REQUIREMENTS, data, job])[:16]
                jobs.append({**job, "out": str(directory / f"{name}-{key}")})
    return jobs


def train_neighbours(
    jobs: list[dict[str, Any]], plan: PreparedSweep, source: KeptSource, work: Path, environment: Path
) -> None:
    """Runs the jobs that no earlier run has done."""
    jobs = [job for job in jobs if not Path(job["out"]).is_dir()]
    if not jobs:
        return
    python = make_environment(environment)
    with tempfile.TemporaryDirectory(dir=work) as directory:
        rows, todo = Path(directory, "rows.safetensors"), Path(directory, "jobs.json")
        site = plan.trials[0].site
        stream = RowStream(source, plan.layout, site)
        rows_RD = stream.read(jobs[0]["steps"] * jobs[0]["batch_size"]).float()
        limit = source.statistics()[site].norms.limit
        kept_RD = rows_RD[takes_part(square_norms(rows_RD), limit)]  # theirs know no max_norm
        again_RD = kept_RD[: len(rows_RD) - len(kept_RD)]  # in place of the others: they count batches, not rows
        safetensors.torch.save_file({"rows": torch.cat([kept_RD, again_RD])}, rows)
        todo.write_text(json.dumps(jobs), "utf-8")
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        command = [str(python), str(HERE / "neighbours.py"), str(rows), str(todo)]
        with (work / "neighbours.log").open("ab") as log:  # progress bars of theirs
            subprocess.run(command, check=True, env=environ, stderr=log)


@torch.no_grad()
def from_neighbour(folder: Path) -> SAE:
    """Their SAE as one of ours; checked against what the library itself makes of some rows."""
    sae = load(folder)
    probes = safetensors.torch.load_file(folder / "probes.safetensors")
    acts_BF = sae.encode(probes["probe_x"])
    for name, ours, theirs in (("encode", acts_BF, "probe_acts"), ("decode", sae.decode(acts_BF), "probe_x_hat")):
        error = ((ours - probes[theirs]).abs().max() / probes[theirs].abs().max()).item()
        if not error < 1e-4:
            raise SystemExit(
                f"{folder.name}: {name} differs from the library's own by {error:.1e} of the largest value"
            )
    return sae


# ---- comparison -----------------------------------------------------------------------------------------------------


class Family:
    """The SAEs of one library or recipe: sparsities × seeds."""

    def __init__(self) -> None:
        self.draws: dict[float, list[dict[str, np.ndarray[Any, Any]]]] = {}
        """sparsity -> for each seed: metric -> [R], the first of the whole held-out set, the others bootstrap draws."""

    def curves(self, cost: str, seeds: np.random.RandomState) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(cost, log L0), each [R, sparsities], means over (a draw of) the seeds, in the order of the cost."""
        n_seeds = len(next(iter(self.draws.values())))
        weights_RK = seeds.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), DRAWS + 1) / n_seeds
        weights_RK[0] = 1 / n_seeds
        xs, ys = [], []
        for by_seed in self.draws.values():
            xs.append((np.stack([COSTS[cost](m) for m in by_seed], 1) * weights_RK).sum(1))
            ys.append((np.stack([np.log(m["l0"]) for m in by_seed], 1) * weights_RK).sum(1))
        x, y = np.stack(xs, 1), np.stack(ys, 1)
        order = np.argsort(x, axis=1)
        return np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)


def compare(ours: Family, theirs: Family, cost: str) -> dict[str, Any]:
    """Ratios of L0 at equal cost: the mean over the common range, and at its points; none where there is no such."""
    x_ours, y_ours = ours.curves(cost, np.random.RandomState(1))
    x_theirs, y_theirs = theirs.curves(cost, np.random.RandomState(2))
    low, high = (max(x_ours[0, 0], x_theirs[0, 0]), min(x_ours[0, -1], x_theirs[0, -1]))
    if low >= high:
        return {"equal": cost, "ratio": None, "interval": None, "points": []}
    # A draw moves the ends of the curves a little: its points are the same fractions of its own common range.
    log_RP, theirs_l0_P = np.empty((DRAWS + 1, POINTS)), np.empty(POINTS)
    for r in range(DRAWS + 1):
        ends = (max(x_ours[r, 0], x_theirs[r, 0]), min(x_ours[r, -1], x_theirs[r, -1]))
        grid_P = np.linspace(*ends, POINTS)
        theirs_P = np.interp(grid_P, x_theirs[r], y_theirs[r])
        log_RP[r] = np.interp(grid_P, x_ours[r], y_ours[r]) - theirs_P
        if r == 0:
            theirs_l0_P = np.exp(theirs_P)
    quality = np.exp(np.linspace(low, high, POINTS))
    bounds = np.exp(np.percentile(log_RP[1:], [2.5, 97.5], axis=0))
    mean = np.exp(log_RP.mean(1))
    return {
        "equal": cost,
        "ratio": float(mean[0]),
        "interval": np.percentile(mean[1:], [2.5, 97.5]).tolist(),
        "points": [
            {
                "quality": float(quality[p] if cost == "FVU" else 1 - quality[p]),
                "l0_theirs": float(theirs_l0_P[p]),
                "ratio": float(math.exp(log_RP[0, p])),
                "interval": bounds[:, p].tolist(),
            }
            for p in range(POINTS)
        ],
    }


# ---- the report -----------------------------------------------------------------------------------------------------


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def interval(ratio: float, bounds: list[float]) -> str:
    return f"{ratio:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=NEIGHBOURS, default="gated")
    parser.add_argument("--work", type=Path, required=True, help="tokens, and what the neighbours trained")
    parser.add_argument(
        "--environment", type=Path, help="the neighbours' virtual environment; default WORK/environment"
    )
    parser.add_argument("--ours", nargs="+", action="append", metavar=("NAME", "KEY=VALUE"), help="default: defaults")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for ours and theirs")
    parser.add_argument(
        "--neighbours-sparsity", type=json.loads, nargs="+", help="λ or k of the neighbours; default: those of ours"
    )
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    families = {name: overrides for name, *overrides in args.ours or [["ours"]]}
    plans = {
        name: prepare(sweep_of(args.architecture, [*args.set, *(f"saes.0.{item}" for item in overrides)]), args.work)
        for name, overrides in families.items()
    }
    base = prepare(sweep_of(args.architecture, args.set), args.work)
    producer = Producer(producer_spec(base))
    site = base.trials[0].site
    source = KeptSource(producer, site)

    jobs = neighbour_jobs(base, args.neighbours_sparsity, args.work)
    train_neighbours(jobs, base, source, args.work, args.environment or args.work / "environment")
    saes = [(job["library"], job["sparsity"], job["seed"], from_neighbour(Path(job["out"]))) for job in jobs]
    for name, plan in plans.items():
        for trial in plan.trials:
            saes.append((name, trial.sparsity, trial.training.seed, train(trial, plan, source)))
            print(f"{name} {trial.sparsity:g} seed {trial.training.seed}: trained", flush=True)

    tokens = tokens_of(base)
    settings = base.sweep
    evaluator = Evaluator(
        model_of(producer), tokens.heldout(), tokens.kept, settings.evaluation.batch, settings.dataset.max_norm
    )
    contexts = len(tokens.heldout())
    draws = np.random.RandomState(0).multinomial(contexts, np.full(contexts, 1 / contexts), DRAWS)
    weights_RS = np.concatenate([np.ones((1, contexts)), draws])
    rows: list[dict[str, Any]] = []
    results: dict[str, Family] = {}
    for name, sparsity, seed, sae in saes:
        evaluation = evaluator.evaluate(Site(site), sae)
        rows.append({"sae": name, "sparsity": sparsity, "seed": seed, **evaluation.metrics})
        totals = {key: weights_RS @ np.array(values) for key, values in evaluation.sequences.items()}
        drawn = {key: METRICS[key].formula(totals) for key in ("l0", "fvu", "loss_recovered")}
        results.setdefault(name, Family()).draws.setdefault(sparsity, []).append(drawn)

    columns = ["sparsity", "seed", "l0", "loss_recovered", "fvu", "gamma", "alive_fraction"]
    table = [[row["sae"], *(f"{row[key]:.4g}" for key in columns)] for row in rows]
    print_table(["SAE", "sparsity", "seed", "L0", "loss recovered", "FVU", "γ", "alive"], table)
    comparisons = [
        {"ours": name, "theirs": library, **compare(results[name], results[library], cost)}
        for name in families
        for library in NEIGHBOURS[args.architecture]
        for cost in COSTS
    ]
    table = []
    for c in comparisons:
        if not c["points"]:
            nothing = "the frontiers have no common range: other λ are needed"
            table.append([c["ours"], c["theirs"], c["equal"], nothing, "", ""])
            continue
        worst = max(c["points"], key=lambda point: point["interval"][0])
        above = sum(point["interval"][0] > 1 for point in c["points"])
        table.append([c["ours"], c["theirs"], c["equal"], interval(c["ratio"], c["interval"])])
        table[-1] += [
            f"{interval(worst['ratio'], worst['interval'])} at L0 {worst['l0_theirs']:.3g}",
            f"{above}/{POINTS}",
        ]
    print_table(["ours", "theirs", "at equal", "L0 ratio", "worst point", "significantly above 1"], table)
    if args.json:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
        report = {
            "architecture": args.architecture,
            "requirements": REQUIREMENTS,
            "versions": versions,
            "families": families,
            "set": args.set,
        }
        report |= {"schedule": SCHEDULE, "saes": rows, "comparisons": comparisons}
        args.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
