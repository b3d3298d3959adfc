"""What came out of a sweep: the frontier, the best SAE. Reads MLflow, or the storage; no Ray here."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsae_ray.errors import UserError, first_line, suggest
from gsae_ray.results import curves
from gsae_ray.results.curves import pareto
from gsae_ray.results.outcomes import MLflowOutcomes, Outcome, Outcomes, StorageOutcomes
from gsae_ray.saes import REGISTRY, SAE, load
from gsae_ray.tracking.artifacts import fetch_sae, fetch_sequences
from gsae_ray.tracking.tags import EVALUATION, LAUNCH, TRIAL

EVAL_COLUMNS = [
    *("l0", "loss_recovered", "gamma", "fvu", "kl"),
    *("ce_clean", "ce_spliced", "ce_zero", "alive_fraction"),
]
COLUMNS = [
    *("run_id", "trial", "site", "architecture", "recipe", "d_sae", "sparsity", "lr", "seed", "tokens"),
    *EVAL_COLUMNS,
    *("on_frontier", "variant", "sink_share", "l1_units", "batch_size", "parent", "launch"),
]
MEANINGFUL_NATS = 0.05
"""Where zero-ablation costs less than this, loss recovered is a ratio of noise."""
ENCODERS = ("own", "pursuit")
"""Whose features a frontier is of: the SAE's encoder's, or those that gradient pursuit finds with its decoder."""
SHOWN_FAILURES = 3
EXAMPLE_L0 = 40
"""An L0 to ask for, where some SAE has it."""
MIXED = "all"
"""In place of a number of tokens: SAEs of any number, together."""


# ---- the frontier ---------------------------------------------------------------------------------------------------


def log_l0_at(rows: pd.DataFrame, loss_recovered: float) -> float:
    """ln L0 of a frontier at a loss recovered (see `curves.log_l0_at`)."""
    return float(curves.log_l0_at(*_curve(rows), np.array(loss_recovered)))


def check_tokens(*groups: pd.DataFrame) -> None:
    """Whether rows may share a frontier: more tokens make a better SAE of any kind.

    Raises:
        UserError: they were trained on different numbers of tokens.
    """
    budgets = sorted({tokens for rows in groups for tokens in rows["tokens"]})
    if len(budgets) > 1:
        raise UserError(
            f"tokens: these SAEs were trained on {_listed(budgets)} tokens; name one number of them "
            f"(--tokens {budgets[-1]}), or say that they may be mixed (--tokens all)"
        )


def _listed(budgets: Iterable[int]) -> str:
    """`60,000 and 200,000`"""
    *most, last = (f"{tokens:,}" for tokens in budgets)
    return f"{', '.join(most)} and {last}"


def check_recipes(*groups: pd.DataFrame) -> None:
    """Whether rows may be compared: a difference between two recipes is no difference between architectures.

    Raises:
        UserError: they were trained by several recipes.
    """
    recipes = sorted({recipe for rows in groups for recipe in rows["recipe"]})
    if len(recipes) > 1:
        raise UserError(
            f"recipe: these SAEs were trained by {len(recipes)} recipes ({', '.join(recipes)}), which no comparison "
            "of architectures may mix; choose rows of one, or say mixed_recipes=True"
        )


def l0_ratio(
    better: pd.DataFrame, base: pd.DataFrame, points: int = 21, mixed_recipes: bool = False, mixed_tokens: bool = False
) -> float:
    """Mean ratio of L0 at equal loss recovered, over the range that both frontiers cover; NaN where there is none.

    Raises:
        UserError: the rows were trained by several recipes, or on different numbers of tokens, and `mixed_recipes`, or
            `mixed_tokens`, does not say that this is meant.
    """
    if not mixed_recipes:
        check_recipes(better, base)
    if not mixed_tokens:
        check_tokens(better, base)
    return curves.l0_ratio(_curve(better), _curve(base), points)


def _curve(rows: pd.DataFrame) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return rows["l0"].to_numpy(), rows["loss_recovered"].to_numpy()


def _outcomes(experiment: str, tracking_uri: str | None, storage: str | Path | None) -> Outcomes:
    return MLflowOutcomes(tracking_uri, experiment) if storage is None else StorageOutcomes(storage, experiment)


def _launch_id(outcomes: Outcomes, experiment: str, launch: str | None) -> str | None:
    """The launch asked for, the newest by default; None for all."""
    ids = outcomes.launches()
    if not ids:
        raise UserError(f"experiment: {experiment!r} has no runs; `gsae-ray run` a sweep first")
    if launch in (None, *ids):
        return launch or ids[0]
    if launch == "all":
        return None
    raise UserError(f"launch: no {launch!r} in {experiment!r}; {suggest(launch, ids)}")


def _row(outcome: Outcome) -> dict[str, Any]:
    """What a trial is.

    Raises:
        KeyError, ValueError: a tag or a parameter is missing, or makes no sense.
    """
    params = outcome.params
    sae = REGISTRY[params["architecture"]]
    sparsity = sae.sparsity_hyperparameter
    return {
        "run_id": outcome.run_id,
        "trial": outcome.tags[TRIAL],
        "site": params["site"],
        "architecture": params["architecture"],
        "recipe": params["recipe"],
        "variant": params.get("variant", ""),
        "l1_units": params.get("l1_units", "sum") if sae.sparsity_in_l1_units else "",
        "d_sae": int(params["d_sae"]),
        "sparsity": float(params[sparsity]) if sparsity else float("nan"),
        "lr": float(params["lr"]),
        "seed": int(params["seed"]),
        "tokens": int(params["tokens"]),
        "batch_size": int(params["batch_size"]),
        "parent": params.get("parent", ""),
        "launch": outcome.tags[LAUNCH],
        "sink_share": outcome.metrics.get("train/sink_share", float("nan")),
    }


def _of_sweeps(outcomes: Iterable[Outcome]) -> tuple[list[tuple[Outcome, dict[str, Any]]], list[str]]:
    """Outcomes with what each trial is; and, of runs that no launch has made or that are not whole, a note each."""
    whole, notes = [], []
    for outcome in outcomes:
        try:
            row = _row(outcome)
            row["fingerprint"] = outcome.tags[EVALUATION]
        except (KeyError, ValueError) as error:
            notes.append(f"{outcome.run_id} is left out: no run of a sweep, or not a whole one ({first_line(error)})")
        else:
            whole.append((outcome, row))
    return whole, notes


def _own(outcome: Outcome) -> dict[str, float]:
    """The evaluation of a trial's own encoder."""
    metrics = outcome.metrics.items()
    return {name.removeprefix("eval/"): value for name, value in metrics if name.startswith("eval/")}


def _evaluated(row: dict[str, Any], evaluation: Mapping[str, float]) -> dict[str, Any]:
    return row | {name: evaluation.get(name, float("nan")) for name in EVAL_COLUMNS}


def _failures(outcomes: Outcomes, failed: Sequence[Outcome]) -> str:
    """`2 trials failed (a: why; b: why); …`: how many, and why."""
    shown = "; ".join(outcome.failure[:300] for outcome in failed[:SHOWN_FAILURES])
    more = f"; and {len(failed) - SHOWN_FAILURES} more" if len(failed) > SHOWN_FAILURES else ""
    return f"{len(failed)} trial{'s' * (len(failed) > 1)} failed ({shown}{more}); why: {outcomes.failures}"


def frontier(
    experiment: str,
    site: str | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    encoder: str = "own",
    tokens: int | str | None = None,
    storage: str | Path | None = None,
) -> pd.DataFrame:
    """The evaluated SAEs of a sweep, sorted by site, tokens and L0.

    Failed and unfinished trials, SAEs with L0 = 0 and non-finite results are left out.

    Args:
        experiment: the MLflow experiment, by default the sweep's name.
        site: only this one.
        launch: an id, or "all"; default: the newest.
        encoder: "own", or "pursuit": the decoders with gradient pursuit, where the sweep has `evaluation.pursuit_l0`.
        tokens: only SAEs that were trained on so many; "all": of any number, on one frontier; default: of any number,
            each with a frontier of its own.
        storage: read the sweep's own storage in MLflow's place; `run_id` is then the folder of each trial.
    Returns:
        One row a trial with the columns `COLUMNS`; of pursuit, one row a trial and target, and a column `pursuit_l0`
        more. `on_frontier`: no SAE of its site, and number of tokens unless those are "all", has a lower L0 and a
        higher loss recovered. `recipe`: objective/schedule of the training, and what deviates from them; `variant`:
        options of the architecture that are not at their defaults; `sink_share`: what of the site's E‖x‖² its largest
        0.1 % of rows hold (see `dataset.max_norm`). `attrs["notes"]`: what a reader should know, as lines of text.
    Raises:
        UserError: no such experiment, launch, site, encoder or number of tokens, no finished trial, none that pursuit
            was asked of, or trials evaluated on different tokens.
    """
    if encoder not in ENCODERS:
        raise UserError(f"--encoder: unknown {encoder!r}; {suggest(encoder, ENCODERS)}")
    outcomes = _outcomes(experiment, tracking_uri, storage)
    launch_id = _launch_id(outcomes, experiment, launch)
    finished, notes = _of_sweeps(outcomes.finished(launch_id))
    failed = outcomes.failed(launch_id)
    notes = [*outcomes.notes, *notes]
    if launch_id is None:  # a trial that several launches carry counts once
        finished = list({outcome.identity: (outcome, row) for outcome, row in reversed(finished)}.values())
        done = {outcome.identity for outcome, _ in finished}
        failed = list({o.identity: o for o in reversed(failed) if o.identity not in done}.values())
    if failed:
        notes.append(_failures(outcomes, failed))
    where = f"launch {launch_id}" if launch_id else "any launch"
    if not finished:
        raise UserError("; ".join([f"experiment: no trial of {experiment!r} ({where}) has finished yet", *notes]))
    if encoder == "pursuit":
        found = [
            _evaluated(row, metrics) | {"pursuit_l0": l0}
            for outcome, row in finished
            for l0, metrics in sorted(outcomes.pursuit(outcome).items())
        ]
    else:
        found = [_evaluated(row, _own(outcome)) for outcome, row in finished]
    if not found:
        raise UserError(
            f"--encoder: no trial of {experiment!r} ({where}) was evaluated by pursuit; give its sweep file "
            "evaluation.pursuit_l0 and run it again: what is trained is not trained again"
        )
    rows = pd.DataFrame(found)
    if rows["fingerprint"].nunique() > 1:
        raise UserError(
            f"launch: the launches of {experiment!r} were evaluated on different tokens, or with another "
            "dataset.max_norm, which cannot share a frontier; name one launch"
        )
    if site is not None:
        if site not in set(rows["site"]):
            raise UserError(f"site: no {site!r} in {experiment!r}; {suggest(site, sorted(set(rows['site'])))}")
        rows = rows[rows["site"] == site]
    sharing = ["site"] if tokens == MIXED else ["site", "tokens"]
    rows = _of_tokens(rows, tokens).sort_values([*sharing, "l0", "trial"])
    usable = (rows["l0"] > 0) & np.isfinite(rows[EVAL_COLUMNS]).all(axis=1)
    notes += [
        f"{row.trial}{f', pursuit L0 {row.pursuit_l0},' if encoder == 'pursuit' else ''} is left out: "
        f"L0 = {row.l0:g}, loss recovered {row.loss_recovered:g}"
        for row in rows[~usable].itertuples()
    ]
    rows = rows[usable].reset_index(drop=True)
    rows["on_frontier"] = False
    recipes = sorted(set(rows["recipe"]))
    if len(recipes) > 1:
        notes.append(
            f"{len(recipes)} recipes are mixed here ({', '.join(recipes)}): the frontier is that of all SAEs, not a "
            "comparison of architectures"
        )
    if len(set(rows["l1_units"]) - {""}) > 1:
        notes.append("sparsity: some coefficients are in the paper's units, others in sum units (training.l1_units)")
    if rows.groupby("site")["tokens"].nunique().gt(1).any():
        shared = "share one frontier" if tokens == MIXED else "have a frontier each (--tokens all: one for all)"
        notes.append(f"SAEs trained on {_listed(sorted(set(rows['tokens'])))} tokens {shared}")
    for _, group in rows.groupby(sharing):
        rows.loc[group.index, "on_frontier"] = pareto(*_curve(group))
    for name, group in rows.groupby("site"):
        gap = float((group["ce_zero"] - group["ce_clean"]).iloc[0])
        if gap < MEANINGFUL_NATS:
            notes.append(f"{name}: zero-ablation costs only {gap:.3f} nats, so loss recovered means little there")
    rows.attrs["notes"] = notes
    return rows[[*COLUMNS, "pursuit_l0"] if encoder == "pursuit" else COLUMNS]


def _of_tokens(rows: pd.DataFrame, tokens: int | str | None) -> pd.DataFrame:
    """Those of one token budget, if it is named."""
    if tokens in (None, MIXED):
        return rows
    chosen = rows[rows["tokens"].astype(str) == str(tokens).replace("_", "")]
    if chosen.empty:
        raise UserError(
            f"tokens: no SAE was trained on {tokens}; {suggest(tokens, [*sorted(set(rows['tokens'])), MIXED])}"
        )
    return chosen


def sequences(
    run_id: str, tracking_uri: str | None = None, pursuit_l0: int | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """What an SAE's evaluation summed over each held-out context, for `intervals`.

    Args:
        run_id: of a row of `frontier`; `pursuit_l0` too, if it is one of pursuit.
    Returns:
        Each of `evaluation.metrics.SUMS`, float64 [contexts], in the order that all SAEs of the frontier share.
    Raises:
        UserError: that run has none.
    """
    found = fetch_sequences(run_id, tracking_uri, pursuit_l0)
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


# ---- SAEs -----------------------------------------------------------------------------------------------------------


def choose(
    rows: pd.DataFrame,
    max_l0: float | None = None,
    min_loss_recovered: float | None = None,
    mixed_tokens: bool = False,
) -> pd.Series[Any]:
    """The row of the best SAE: the highest loss recovered with L0 ≤ max_l0, or the lowest L0 that recovers enough.

    Raises:
        UserError: rows of several sites, or numbers of tokens that may not be mixed; not exactly one constraint, or
            nothing meets it.
    """
    if rows.empty:
        raise UserError("best: no SAE to choose from; those of this sweep have L0 = 0 or a result that is not finite")
    sites = sorted(set(rows["site"]))
    if len(sites) > 1:
        raise UserError(f"site: this sweep has {len(sites)}, name one (one of: {', '.join(sites)})")
    if not mixed_tokens:
        check_tokens(rows)
    if (max_l0 is None) == (min_loss_recovered is None):
        raise UserError("best: give either max_l0 (e.g. 40) or min_loss_recovered (e.g. 0.95)")
    if max_l0 is not None:
        fitting = rows[rows["l0"] <= max_l0]
        if fitting.empty:
            raise UserError(f"max_l0: no SAE has L0 <= {max_l0:g}; the lowest is {rows['l0'].min():.3g}")
        return fitting.loc[fitting["loss_recovered"].idxmax()]
    fitting = rows[rows["loss_recovered"] >= min_loss_recovered]
    if fitting.empty:
        raise UserError(
            f"min_loss_recovered: no SAE recovers {min_loss_recovered:g}; the highest is "
            f"{rows['loss_recovered'].max():.4f}"
        )
    return fitting.loc[fitting["l0"].idxmin()]


def example_constraint(rows: pd.DataFrame) -> list[str]:
    """Options with which `gsae-ray best` finds an SAE of these rows, of which there is at least one."""
    last = rows.iloc[-1]
    of_site = rows[rows["site"] == last["site"]]
    options = ["--site", str(last["site"])]
    if of_site["tokens"].nunique() > 1:
        of_site = of_site[of_site["tokens"] == last["tokens"]]
        options += ["--tokens", str(last["tokens"])]
    return [*options, "--max-l0", str(max(EXAMPLE_L0, math.ceil(of_site["l0"].min())))]


def best(
    experiment: str,
    site: str | None = None,
    max_l0: float | None = None,
    min_loss_recovered: float | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    tokens: int | str | None = None,
) -> SAE:
    """Fetches the best SAE of a sweep under a constraint; its frontier row is in `cfg.metadata["frontier"]`.

    Args:
        tokens: of SAEs that were trained on so many; "all": of any number. Where there are several, one is to be said.
    Raises:
        UserError: as `frontier` and `choose`.
    """
    rows = frontier(experiment, site, launch, tracking_uri, tokens=tokens)
    row = choose(rows, max_l0, min_loss_recovered, mixed_tokens=tokens == MIXED)
    with tempfile.TemporaryDirectory(prefix="gsae-") as folder:
        sae = load(fetch_sae(row["run_id"], folder, tracking_uri, "best"))
    record = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
    sae.cfg = sae.cfg.model_copy(update={"metadata": {**sae.cfg.metadata, "frontier": record}})
    return sae
