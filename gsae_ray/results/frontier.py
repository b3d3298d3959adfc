"""The frontier of a sweep: a table of its evaluated SAEs, read from MLflow or from the storage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsae_ray.errors import UserError, first_line, suggest
from gsae_ray.evaluation import metrics
from gsae_ray.evaluation.bootstrap import low_and_high
from gsae_ray.evaluation.metrics import METRICS
from gsae_ray.results.columns import RATER, beside, columns, ends
from gsae_ray.results.comparison import (
    LOSS_RECOVERED,
    STOPPED_AT,
    curve,
    is_spliced,
    listed,
    own_saes,
    quality_of,
    recipes_differ,
)
from gsae_ray.results.curves import pareto
from gsae_ray.results.frontier_table import FrontierTable
from gsae_ray.results.grids import at_edges
from gsae_ray.results.outcomes import (
    MLflowOutcomes,
    Outcome,
    Outcomes,
    StorageOutcomes,
    describe_failures,
    left_stopped,
)
from gsae_ray.results.references import UNKNOWN, row_of, trained_elsewhere
from gsae_ray.results.trial_row import row_of_trial
from gsae_ray.tracking.tags import RATINGS, STOPPED

MEANINGFUL_NATS = 0.05
"""Where zero-ablation costs less than this, loss recovered is a ratio of noise."""
ENCODERS = ("own", "pursuit")
"""Whose features a frontier is of: the SAE's encoder's, or those that gradient pursuit finds with its decoder."""
MIXED = "all"
"""In place of a number of tokens: SAEs of any number, together."""


def outcomes_of(experiment: str, tracking_uri: str | None, storage: str | Path | None) -> Outcomes:
    """Where the outcomes of an experiment are read: MLflow, or the storage where one is given."""
    return MLflowOutcomes(tracking_uri, experiment) if storage is None else StorageOutcomes(storage, experiment)


def choose_launch(outcomes: Outcomes, experiment: str, launch: str | None) -> str | None:
    """The launch asked for, the newest by default; None for all."""
    ids = outcomes.launches()
    if not ids:
        raise UserError(f"experiment: {experiment!r} has no runs; `gsae-ray run` a sweep first")
    if launch in (None, *ids):
        return launch or ids[0]
    if launch == "all":
        return None
    raise UserError(f"launch: no {launch!r} in {experiment!r}; {suggest(launch, ids)}")


def _of_sweeps(
    outcomes: Iterable[Outcome], settings: Callable[[Outcome], dict[str, Any]]
) -> tuple[list[tuple[Outcome, dict[str, Any]]], list[str]]:
    """Outcomes with their settings as table rows; and a note for each run that is not a whole run of a launch."""
    whole, notes = [], []
    for outcome in outcomes:
        try:
            row = settings(outcome)
        except (KeyError, ValueError) as error:
            notes.append(f"{outcome.run_id} is left out: no run of a sweep, or not a whole one ({first_line(error)})")
        else:
            whole.append((outcome, row))
    return whole, notes


def frontier(
    experiment: str,
    site: str | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    encoder: str = "own",
    tokens: int | str | None = None,
    storage: str | Path | None = None,
    with_references: bool = False,
    with_stopped: bool = False,
) -> pd.DataFrame:
    """The evaluated SAEs of a sweep and its references, SAEs from elsewhere; sorted by site, tokens and L0.

    Failed and unfinished trials are left out, and SAEs with L0 = 0, or without a finite L0 and loss recovered. Other
    metrics may be NaN. Where SAEs were evaluated without a language model the explained variance, 1 − FVU, is in the
    place of loss recovered, which is NaN; where the true features are known, or probes were fitted, there are columns
    more.

    Args:
        experiment: the MLflow experiment, by default the sweep's name.
        site: only this one.
        launch: an id, or "all"; default: the newest.
        tracking_uri: of MLflow; default: MLFLOW_TRACKING_URI, or `mlflow.db` in the working directory.
        encoder: "own", or "pursuit": the decoders with gradient pursuit, where the sweep has `evaluation.pursuit_l0`.
        tokens: only SAEs that were trained on so many, and the snapshots of longer trainings at so many; "all": of any
            number, snapshots too, on one frontier; default: of any number, each with a frontier of its own, and no
            snapshots (`training.snapshots_at`).
        storage: read the sweep's own storage in MLflow's place; `run_id` is then the folder of each trial.
        with_references: references compete for the frontier; by default they are shown beside it.
        with_stopped: trials that `scheduler` has stopped are rows, too, as they were when they were compared, which
            was on a part of the held-out rows: never on the frontier, and in no comparison with the others. A column
            `stopped_at` more says after how many tokens; `tokens` is what they were to be trained on.

    Returns:
        A `pandas.DataFrame` that shows itself as a frontier, in notebooks with its picture. One row a trial and one a
        reference, with the columns `columns()`; of pursuit, one row a trial and target, no references, and a column
        `pursuit_l0` more. `on_frontier`: no SAE of its site, and number of tokens unless those are "all", has a lower
        L0 and a higher loss recovered (or explained variance); never a reference's, unless `with_references`.
        `l0_low`, `l0_high` and the like: the ends of 95 % intervals over the held-out contexts.
        `snapshot`: whether training went on from there (`run_id` and `trial` are of the whole training);
        `recipe`: objective/schedule of the training, and what deviates from them; `variant`: options of the
        architecture that are not at their defaults; `sink_share`: what of the site's E‖x‖² its largest
        0.1 % of rows hold (see `dataset.max_norm`); `found_coefficient`: what training found for `target_l0`, in the
        units of the sweep file; `origin`: `own`, or what a reference is called. Of a reference,
        trial and recipe are empty, and sparsity, lr, seed, tokens and batch_size are missing. `attrs["notes"]`: what a
        reader should know, as lines of text.

    Raises:
        UserError: no such experiment, launch, site, encoder or number of tokens, no finished trial, none that pursuit
            was asked of, or trials evaluated on different tokens.
    """
    if encoder not in ENCODERS:
        raise UserError(f"--encoder: unknown {encoder!r}; {suggest(encoder, ENCODERS)}")
    if with_stopped and encoder != "own":
        raise UserError(f"--stopped: trials are compared with their own encoder; leave --encoder {encoder} out")
    outcomes = outcomes_of(experiment, tracking_uri, storage)
    launch_id = choose_launch(outcomes, experiment, launch)
    where = f"{experiment!r} ({f'launch {launch_id}' if launch_id else 'any launch'})"
    references = outcomes.references(launch_id) if encoder == "own" else []  # before: they may add to `outcomes.notes`
    finished, notes = _finished(outcomes, launch_id)
    if not finished:
        raise UserError("; ".join([f"experiment: no trial of {where} has finished yet", *notes]))
    evaluated = _evaluated(outcomes, finished, encoder)
    if tokens is not None and encoder == "own":
        evaluated += _snapshots(outcomes, finished)
    if not evaluated:
        raise UserError(
            f"--encoder: no trial of {where} was evaluated by pursuit; give its sweep file "
            "evaluation.pursuit_l0 and run it again: what is trained is not trained again"
        )
    rows, left_out = _with_references(pd.DataFrame(evaluated), references)
    notes += left_out
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
    quality = quality_of(rows)
    spliced = is_spliced(rows) if quality == LOSS_RECOVERED else rows["fvu"].notna()
    if not spliced.all():
        notes.append(
            "without a language model there is no loss recovered, so evaluations on rows alone are left out: "
            f"{(~spliced).sum()} of {len(rows)}"
        )
    usable = (rows["l0"] > 0) & np.isfinite(rows["l0"]) & np.isfinite(quality.of(rows))
    notes += [
        f"{_named(row)} is left out: L0 = {row['l0']:g}, {quality.name} {value:g}"
        for (_, row), value in zip(rows[spliced & ~usable].iterrows(), quality.of(rows[spliced & ~usable]), strict=True)
    ]
    rows = rows[usable].reset_index(drop=True)
    rows["on_frontier"] = False
    for group in _frontiers(rows, tokens, with_references):
        rows.loc[group.index, "on_frontier"] |= pareto(*curve(group))
    more = ["pursuit_l0"] if encoder == "pursuit" else []
    notes += _caveats(rows, tokens)
    stopped = _stopped(outcomes, launch_id, site, tokens)
    if with_stopped:
        more.append(STOPPED_AT)
        beside = pd.DataFrame([row | _as_compared(outcomes, outcome) for outcome, row in stopped])
        rows = pd.concat([rows.assign(**{STOPPED_AT: np.nan}), beside], ignore_index=True)
        rows["on_frontier"] = rows["on_frontier"].astype(bool)
    elif stopped:
        notes.append(f"{len(stopped)} trials were stopped by the scheduler (`frontier --stopped`, with_stopped=True)")
    table = FrontierTable(rows[[*columns(rows), *more]])
    table.attrs["notes"] = notes
    return table


def _stopped(
    outcomes: Outcomes, launch_id: str | None, site: str | None, tokens: int | str | None
) -> list[tuple[Outcome, dict[str, Any]]]:
    """The trials that a scheduler has stopped, with their settings as table rows."""
    found, _ = _of_sweeps(left_stopped(outcomes, launch_id), row_of_trial)
    found = [(outcome, row) for outcome, row in found if site in (None, row["site"])]
    if tokens not in (None, MIXED):
        found = [(outcome, row) for outcome, row in found if str(row["tokens"]) == str(tokens).replace("_", "")]
    return sorted(found, key=lambda pair: (pair[1]["site"], pair[1]["trial"]))


def _as_compared(outcomes: Outcomes, outcome: Outcome) -> dict[str, Any]:
    """What a stopped trial had come to when it was found to be beaten; it may have been compared again since."""
    at: int = json.loads(outcome.tags[STOPPED])["tokens"]
    comparisons = outcomes.comparisons(outcome)
    row = min((step for step in comparisons if step >= at), default=None)  # the first metric row from there on
    return {**metrics_of(comparisons.get(row or 0, {})), "on_frontier": False, STOPPED_AT: at}


def _frontiers(rows: pd.DataFrame, tokens: int | str | None, with_references: bool) -> Iterator[pd.DataFrame]:
    """The SAEs of each frontier: at each site, of each number of tokens; references are on all of their site's."""
    for _, at_site in rows.groupby("site"):
        own = own_saes(at_site)
        beside = at_site.index.difference(own.index) if with_references else []
        for group in [own] if tokens == MIXED or own.empty else [group for _, group in own.groupby("tokens")]:
            yield rows.loc[[*group.index, *beside]]


def _with_references(rows: pd.DataFrame, references: Sequence[Outcome]) -> tuple[pd.DataFrame, list[str]]:
    """Table rows of trials, and of references, each once; and a note for each of those that is not a whole one."""
    found, notes = _of_sweeps(references, row_of)
    found = list({(o.identity, row["fingerprint"]): (o, row) for o, row in reversed(found)}.values())
    if not found:
        return rows, notes
    beside = pd.DataFrame([row | metrics_of(outcome.evaluation) for outcome, row in found])
    whole = dict.fromkeys(UNKNOWN, "Int64")  # integers of which some are missing
    return pd.concat([rows.astype(whole), beside.astype(whole)], ignore_index=True), notes


def _finished(outcomes: Outcomes, launch_id: str | None) -> tuple[list[tuple[Outcome, dict[str, Any]]], list[str]]:
    """Finished trials, each with its settings as a table row; and notes about what failed or cannot be read.

    Args:
        outcomes: where they are read.
        launch_id: None for all launches: a trial that several of them carry counts once, as the newest has it.
    """
    finished, notes = _of_sweeps(outcomes.finished(launch_id), row_of_trial)
    failed = outcomes.failed(launch_id)
    notes = [*outcomes.notes, *notes]
    if launch_id is None:
        finished = list({outcome.identity: (outcome, row) for outcome, row in reversed(finished)}.values())
        done = {outcome.identity for outcome, _ in finished}
        failed = list({o.identity: o for o in reversed(failed) if o.identity not in done}.values())
    if failed:
        notes.append(describe_failures(outcomes, failed))
    return finished, notes


def _evaluated(
    outcomes: Outcomes, finished: Iterable[tuple[Outcome, dict[str, Any]]], encoder: str
) -> list[dict[str, Any]]:
    """Table rows of finished trials with their evaluations: one a trial, or of pursuit one a trial and target."""
    if encoder == "pursuit":
        return [
            row | metrics_of(evaluation) | {"pursuit_l0": l0}
            for outcome, row in finished
            for l0, evaluation in sorted(outcomes.pursuit(outcome).items())
        ]
    return [
        row | metrics_of(outcome.evaluation) | _of_training(outcome) | _of_ratings(outcome) for outcome, row in finished
    ]


def _of_training(outcome: Outcome) -> dict[str, float]:
    """The metrics of the last interval of training that are columns; NaN for those that were not logged."""
    return {name: outcome.metrics.get(f"train/{row}", float("nan")) for name, row in metrics.TRAINING.items()}


def _of_ratings(outcome: Outcome) -> dict[str, Any]:
    """What a language model's ratings of features come to, with the ends of their intervals; nothing without any."""
    if RATINGS not in outcome.tags:
        return {}
    told = json.loads(outcome.tags[RATINGS])
    names = [name for score in metrics.RATED for name in (score, *low_and_high(score))]
    return {RATER: told["rater"], **{name: float(told.get(name, "nan")) for name in names}}


def _snapshots(outcomes: Outcomes, finished: Iterable[tuple[Outcome, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Table rows of the snapshots of finished trials; a coefficient that training found is of its end."""
    of_snapshots = {"snapshot": True, "found_coefficient": float("nan")}
    return [
        row | metrics_of(evaluation) | of_snapshots | {"tokens": tokens}
        for outcome, row in finished
        for tokens, evaluation in sorted(outcomes.snapshots(outcome).items())
    ]


def metrics_of(evaluation: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are columns, and the ends of their intervals; NaN for those that an evaluation lacks."""
    names = [*metrics.columns(), *metrics.columns(beside=True)]
    return {name: evaluation.get(name, float("nan")) for name in (*names, *ends(names))}


def _named(row: pd.Series[Any]) -> str:
    """How a note names a table row: by its trial, and of pursuit by its target; a reference by its origin."""
    name = str(row["trial"] or row["origin"])
    if row["snapshot"]:
        return f"{name}, snapshot at {row['tokens']:,} tokens,"
    return f"{name}, pursuit L0 {row['pursuit_l0']}," if "pursuit_l0" in row else name


def _not_finite(rows: pd.DataFrame) -> Iterator[tuple[pd.Series[Any], list[str]]]:
    """Table rows with the metrics of each that are not finite, of those that evaluations of its schema carry."""
    left_out = ["training", "probes", "ratings", *([] if quality_of(rows) == LOSS_RECOVERED else ["model"])]
    names = [name for name in [*metrics.columns(), *beside(rows)] if METRICS[name].takes not in left_out]
    for _, row in rows.iterrows():
        carried = [name for name in names if METRICS[name].since <= row["schema"]]
        if undefined := [name for name in carried if not np.isfinite(row[name])]:
            yield row, undefined


def _caveats(rows: pd.DataFrame, tokens: int | str | None) -> list[str]:
    """What makes the SAEs of a frontier hard to compare, a line each."""
    notes, own = [], own_saes(rows)
    recipes = sorted(set(own["recipe"]))
    if recipes_differ(recipes):
        notes.append(
            f"{len(recipes)} recipes are mixed here ({', '.join(recipes)}): the frontier is that of all SAEs, not a "
            "comparison of architectures"
        )
    if {"sum", "paper"} <= {*own["l1_units"]}:
        notes.append("sparsity: some coefficients are in the paper's units, others in sum units (training.l1_units)")
    if own.groupby("site")["tokens"].nunique().gt(1).any():
        shared = "share one frontier" if tokens == MIXED else "have a frontier each (--tokens all: one for all)"
        notes.append(f"SAEs trained on {listed(sorted(set(own['tokens'])))} tokens {shared}")
    if snapshots := int(own["snapshot"].sum()):
        notes.append(
            f"{snapshots} of {len(own)} SAEs are snapshots of longer trainings, from before the end of their "
            "learning-rate schedule (lr_decay): one that is trained for so many tokens may be better"
        )
    for name, group in rows.groupby("site"):
        gap = float((group["ce_zero"] - group["ce_clean"]).iloc[0])
        if gap < MEANINGFUL_NATS:
            notes.append(f"{name}: zero-ablation costs only {gap:.3f} nats, so loss recovered means little there")
    notes += [f"{_named(row)} has no finite {', '.join(undefined)}" for row, undefined in _not_finite(rows)]
    for _, row in rows.iterrows():
        notes += trained_elsewhere(row["origin"], row["site"], row["trained_at"])
    if RATER in rows and len(raters := sorted(set(rows[RATER].dropna()))) > 1:
        notes.append(
            f"detection and fuzzing are by {len(raters)} raters ({', '.join(raters)}), and compare only within each"
        )
    outdated = own[own["schema"] < metrics.schema_version()]
    if len(outdated):
        lacking = [name for name, metric in METRICS.items() if metric.since > outdated["schema"].min()]
        notes.append(
            f"{len(outdated)} evaluations are of an older version, without {', '.join(lacking)}; the next launch of "
            "the sweep makes them again"
        )
    return notes + at_edges(rows)


def _of_tokens(rows: pd.DataFrame, tokens: int | str | None) -> pd.DataFrame:
    """The SAEs that were trained on a number of tokens, if one is asked for; and all references."""
    if tokens in (None, MIXED):
        return rows
    own = own_saes(rows)
    chosen = own[own["tokens"].astype(str) == str(tokens).replace("_", "")]
    if chosen.empty:
        raise UserError(
            f"tokens: no SAE was trained on {tokens}; {suggest(tokens, [*sorted(set(own['tokens'])), MIXED])}"
        )
    return rows.drop(own.index.difference(chosen.index))
