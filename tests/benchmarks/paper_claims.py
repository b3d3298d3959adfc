"""The paper's findings, from the MLflow experiment of sweeps/paper_claims.yaml (built-in model) or of another sweep.

    gsae-ray run sweeps/paper_claims.yaml
    gsae-ray run sweeps/paper_claims.yaml --set dataset.seed=1
    python tests/benchmarks/paper_claims.py

    python tests/benchmarks/paper_claims.py smollm2 --site blocks.12.hook_resid_post

Run it where the sweeps ran. The newest launch of each data seed counts, or the one of --launch. What a launch has no
SAEs for is left out. Every number has a 95 % bootstrap interval over the held-out contexts, the same ones for all
SAEs, and over data seeds; a finding holds where the whole interval lies on the paper's side. L0 ratios are means at
equal loss recovered, over the range that both curves cover. The results, with command and date, are kept in
docs/recipes.md and docs/real_models.md.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
import yaml

from gsae_ray.errors import UserError
from gsae_ray.evaluation.metrics import METRICS, Sums
from gsae_ray.results import intervals, sequences
from gsae_ray.results.comparison import own_saes
from gsae_ray.results.frontier import frontier
from gsae_ray.results.intervals import Interval, Statistic
from gsae_ray.tracking.connection import open_tracking

Test = Callable[[Interval], bool]
OBJECTIVES = ("paper", "norm_weighted")


class Finding(NamedTuple):
    what: str
    paper: str
    """What the paper says, or `ours` for what it does not ask."""
    statistic: Statistic
    holds: Test


class AbsentError(LookupError):
    """The launch has no SAEs of a kind."""


class Launch:
    """The SAEs of one data seed at one site, with the positions of those of a kind."""

    def __init__(self, experiment: str, launch_id: str, site: str | None, tracking_uri: str | None) -> None:
        own = own_saes(frontier(experiment, site=site, launch=launch_id, tracking_uri=tracking_uri))
        if own["site"].nunique() > 1:
            raise SystemExit(f"--site: one of {', '.join(sorted(set(own['site'])))}")
        tables = [own.assign(pursuit_l0=0)]
        with contextlib.suppress(UserError):  # without `evaluation.pursuit_l0` there is no such table
            tables.append(frontier(experiment, site, launch_id, tracking_uri, encoder="pursuit"))
        rows = pd.concat(tables)
        order = ["recipe", "architecture", "variant", "sparsity", "pursuit_l0"]
        self.rows = rows.sort_values(order, ignore_index=True)
        self.key = list(self.rows[order].itertuples(index=False, name=None))
        self.sequences = [
            sequences(row["run_id"], tracking_uri, row["pursuit_l0"] or None) for row in self.rows.to_dict("records")
        ]

    def group(self, objective: str, architecture: str, variant: str = "", pursuit: bool = False) -> list[int]:
        """Positions of a kind of SAEs; of pursuit, of every target.

        Raises:
            AbsentError: there are none.
        """
        rows = self.rows
        chosen = rows["recipe"].str.startswith(objective + "/") & (rows["architecture"] == architecture)
        chosen &= (rows["variant"] == variant) & ((rows["pursuit_l0"] > 0) == pursuit)
        found = list(rows.index[chosen])
        if not found:
            raise AbsentError(objective, architecture, variant)
        return found


def newest_launches(experiment: str, tracking_uri: str | None) -> dict[int, str]:
    """Data seed -> its newest launch that came to the end."""
    client = open_tracking(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise SystemExit(f"no experiment {experiment!r}; run its sweep first")
    query = "tags.`gsae.kind` = 'launch' and attributes.status = 'FINISHED'"
    launches: dict[int, str] = {}
    for run in client.search_runs([found.experiment_id], query, order_by=["attributes.start_time ASC"]):
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(
                run_id=run.info.run_id,
                artifact_path="sweep.yaml",
                dst_path=folder,
                tracking_uri=client.tracking_uri,
            )
            seed = yaml.safe_load(Path(path).read_text("utf-8"))["dataset"]["seed"]
        launches[seed] = run.data.tags["gsae.launch"]
    return launches


# ---- statistics -----------------------------------------------------------------------------------------------------


def metric(name: str, group: Sequence[int], reduce: Callable[..., Any] = np.mean) -> Statistic:
    return lambda saes: reduce(np.stack([METRICS[name].formula(saes[i]) for i in group]), axis=0)


def difference(a: Statistic, b: Statistic) -> Statistic:
    return lambda saes: a(saes) - b(saes)


def share_of_gain(part: Statistic, whole: Statistic) -> Statistic:
    """Of two L0 ratios: how much of the logarithm of the whole one is the part's."""
    return lambda saes: np.log(part(saes)) / np.log(whole(saes))


def best_at_each_target(launch: Launch, group: Sequence[int]) -> Statistic:
    """Loss recovered by pursuit, of the best dictionary at each target L0, meaned over targets."""
    targets = launch.rows["pursuit_l0"]

    def mean_of_best(saes: Sequence[Sums]) -> Any:
        recovered = np.stack([METRICS["loss_recovered"].formula(saes[i]) for i in group])
        return np.mean(
            [recovered[[targets[i] == t for i in group]].max(0) for t in sorted(set(targets[group]))], axis=0
        )

    return mean_of_best


def gap_to_pursuit(launch: Launch, objective: str, architecture: str) -> Statistic:
    """|ln| of the L0 that pursuit needs ÷ the L0 that the SAE's own encoder needs."""
    own, pursuit = (launch.group(objective, architecture, pursuit=p) for p in (False, True))
    ratio = intervals.l0_ratio(pursuit, own)
    return lambda saes: np.abs(np.log(ratio(saes)))


def of_both(launch: Launch, objective: str) -> list[Finding]:
    gated, standard = launch.group(objective, "gated"), launch.group(objective, "standard")
    return [
        Finding(
            "L0 of gated ÷ standard (1.5 × as wide)",
            "below 1; about half (fig. 5, 12, 13)",
            intervals.l0_ratio(gated, standard),
            lambda i: i.high < 1,
        ),
        Finding("γ of gated, mean over λ", "≈ 1: 0.985–1.012 (fig. 6)", metric("gamma", gated), unbiased),
        Finding(
            "γ of standard, the largest of all λ", "below 1", metric("gamma", standard, np.max), lambda i: i.high < 1
        ),
        Finding(
            "γ of standard, at the largest λ − at the smallest",
            "below 0: falls as λ rises",
            difference(metric("gamma", standard[-1:]), metric("gamma", standard[:1])),
            lambda i: i.high < 0,
        ),
    ]


def of_ablations(launch: Launch, objective: str) -> list[Finding]:
    gated = launch.group(objective, "gated")

    def against_gated(variant: str) -> Statistic:
        return intervals.l0_ratio(launch.group(objective, "gated", variant), gated)

    def worse(i: Interval) -> bool:
        return i.low > 1

    if objective == "paper":
        what, paper = "L0 with the auxiliary decoder unfrozen ÷ gated", "above 1 (fig. 8)"
        decoder = Finding(what, paper, against_gated("auxiliary=unfrozen"), worse)
    else:
        what, paper = "L0 with the auxiliary decoder frozen ÷ gated", "ours: above 1, a trap"
        decoder = Finding(what, paper, against_gated("auxiliary=frozen"), worse)
    return [
        decoder,
        Finding("L0 of untied encoders ÷ gated", "slightly above 1 (fig. 8)", against_gated("tied=false"), worse),
        Finding("L0 of r_mag = 0 ÷ gated", "slightly above 1 (fig. 8)", against_gated("learn_r_mag=false"), worse),
        Finding(
            "FVU without auxiliary term, the smallest of all λ",
            "ours: near 1, nothing opens the gates",
            metric("fvu", launch.group(objective, "gated", "auxiliary=none"), np.min),
            lambda i: i.low > 0.9,
        ),
    ]


def of_rescale_shift(launch: Launch, objective: str) -> list[Finding]:
    gated, standard, shifted = (launch.group(objective, name) for name in ("gated", "standard", "rescale_shift"))
    gain, mended = intervals.l0_ratio(gated, standard), intervals.l0_ratio(shifted, standard)
    return [
        Finding("γ of rescale & shift, mean over λ", "≈ 1 (fig. 9)", metric("gamma", shifted), unbiased),
        Finding(
            "share of the gain (ln L0) that rescale & shift explains",
            "a small part (fig. 9)",
            share_of_gain(mended, gain),
            lambda i: i.high < 0.5,
        ),
    ]


def of_pursuit(launch: Launch, objective: str) -> list[Finding]:
    gated, standard = (launch.group(objective, name, pursuit=True) for name in ("gated", "standard"))
    return [
        Finding(
            "gradient pursuit, best dictionary at each L0: loss recovered, gated − standard",
            "slightly above 0 (app. A)",
            difference(best_at_each_target(launch, gated), best_at_each_target(launch, standard)),
            lambda i: i.low > 0,
        ),
        Finding(
            "gap between encoder and pursuit (absolute ln L0), gated − standard",
            "below 0 (app. A)",
            difference(gap_to_pursuit(launch, objective, "gated"), gap_to_pursuit(launch, objective, "standard")),
            lambda i: i.high < 0,
        ),
    ]


def of_objectives(launch: Launch, objective: str) -> list[Finding]:
    if objective == "paper":
        return []
    pairs = {name: [launch.group(o, name) for o in ("norm_weighted", "paper")] for name in ("gated", "standard")}
    return [
        Finding(
            f"L0 of {name}, norm_weighted ÷ paper", "ours: below 1", intervals.l0_ratio(*pair), lambda i: i.high < 1
        )
        for name, pair in pairs.items()
    ]


def findings(launch: Launch, objective: str) -> list[Finding]:
    """Those that the launch has SAEs for."""
    found: list[Finding] = []
    for part in (of_both, of_ablations, of_rescale_shift, of_pursuit, of_objectives):
        with contextlib.suppress(AbsentError):
            found += part(launch, objective)
    return found


def unbiased(i: Interval) -> bool:
    """Within what the paper's tables have for gated SAEs."""
    return i.low >= 0.985 and i.high <= 1.012


# ---- the report -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="paper_claims")
    parser.add_argument("--site", help="where the sweep has more than one")
    parser.add_argument("--launch", help="its id; default: the newest of each data seed")
    parser.add_argument("--tracking-uri")
    args = parser.parse_args()
    launches = {0: args.launch} if args.launch else newest_launches(args.experiment, args.tracking_uri)
    seeds = sorted(launches)
    data = [Launch(args.experiment, launches[seed], args.site, args.tracking_uri) for seed in seeds]
    if any(launch.key != data[0].key for launch in data):
        raise SystemExit("the launches hold different SAEs; run the same file with each data seed")
    replicates = [launch.sequences for launch in data]
    columns = ["objective", "finding", "the paper", "here", *(f"seed {seed}" for seed in seeds), "holds"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for objective in OBJECTIVES:
        for finding in findings(data[0], objective):
            value = intervals.interval(finding.statistic, replicates)
            alone = [intervals.interval(finding.statistic, [saes], draws=1).value for saes in replicates]
            cells = [objective, finding.what, finding.paper, f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"]
            verdict = "—" if math.isnan(value.value) else "yes" if finding.holds(value) else "no"
            print("| " + " | ".join([*cells, *(f"{v:.3f}" for v in alone), verdict]) + " |", flush=True)
    print(f"\n{len(seeds)} data seeds, {len(data[0].key)} evaluations each.")
    print_saes(data[0])
    print_step_times(args.experiment, list(launches.values()), args.tracking_uri)


def print_saes(launch: Launch) -> None:
    """The SAEs of the first data seed, each alone; and what their numbers are to be read against."""
    rows = launch.rows[launch.rows["pursuit_l0"] == 0]
    totals = {name: sum(values) for name, values in launch.sequences[rows.index[0]].items()}
    nats = (totals["nll_zero"] - totals["nll_clean"]) / totals["positions"]
    print(f"\nzero-ablation costs {nats:.3g} nats a token")
    print(f"largest 0.1 % of rows: {rows['sink_share'].iloc[0]:.1%} of Σ‖x‖² before max_norm\n")
    names = ("l0", "loss_recovered", "fvu", "gamma")
    columns = ["recipe", "SAE", "width", "λ", "L0", "loss recovered", "FVU", "γ", "alive"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for index, row in rows.iterrows():
        cells = [row["recipe"], f"{row['architecture']} {row['variant']}".strip(), f"{row['d_sae']:,}"]
        cells.append(f"{row['sparsity']:g}")
        for name in names:
            value = intervals.interval(intervals.of(name, index), [launch.sequences])
            cells.append(f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]")
        print("| " + " | ".join([*cells, f"{row['alive_fraction']:.3g}"]) + " |", flush=True)


def print_step_times(experiment: str, launches: Sequence[str], tracking_uri: str | None) -> None:
    """Measured step times beside the FLOPs of the convention of equal compute."""
    client = open_tracking(tracking_uri)
    rows = pd.concat(frontier(experiment, launch=launch, tracking_uri=tracking_uri) for launch in launches)
    rows["step_ms"] = [client.get_run(run_id).data.metrics["train/step_ms"] for run_id in rows["run_id"]]
    rows["kind"] = rows["recipe"].str.split("/").str[0] + ", " + rows["architecture"] + " " + rows["variant"]
    medians = rows.groupby(["kind", "d_sae"])["step_ms"].median()
    print("\nmedian of train/step_ms (two trials at a time):\n")
    for (kind, d_sae), step_ms in medians.items():
        print(f"- {kind.strip()}, width {d_sae}: {step_ms:.2f} ms")


if __name__ == "__main__":
    main()
