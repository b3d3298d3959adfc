"""What a report says, gathered from where a sweep was recorded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from gsae_ray.errors import UserError
from gsae_ray.results.compare import compare
from gsae_ray.results.compared import count
from gsae_ray.results.comparison import labels, own_saes, quality_of
from gsae_ray.results.frontier import MIXED, frontier
from gsae_ray.results.groups import DEFAULT_BASE
from gsae_ray.results.report.records import About, Series, hours, records_of
from gsae_ray.storage.stopped import told
from gsae_ray.tracking.tags import STOPPED, TRIAL

Pages = Callable[["pd.Series[object]"], str | None]
"""Row of a frontier -> the address of its run's page."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a report says."""

    experiment: str
    launch: str
    """Its id, or `all`."""
    rows: pd.DataFrame
    """As `frontier` returns them."""
    answer: list[str]
    """How the kinds of SAEs compare, or why that cannot be said."""
    about: About
    trainings: Mapping[str, Series]
    """Run of a trial -> its training."""
    failures: Sequence[tuple[str, str]]
    """(trial, why it failed)."""
    stopped: Sequence[tuple[str, str]]
    """(trial, at how many tokens a scheduler has stopped it, and which others had beaten it)."""
    ended_early: Sequence[Series]
    """The trainings of those that failed or were stopped, which took their time, too."""
    pages: Mapping[str, str]
    """Run -> the address of its page."""
    missing: Sequence[str]
    """What could not be had, as lines of text."""
    over_tokens: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    """As `rows`, of trials with snapshots: these, and what came of them."""

    @property
    def trial_hours(self) -> float:
        """Hours that all trials that were read trained, be it in vain."""
        return sum(map(hours, (*self.trainings.values(), *self.ended_early)))

    @property
    def title(self) -> str:
        """See `title_of`."""
        return title_of(self.experiment, self.about.settings, self.rows)


def gather(
    experiment: str,
    site: str | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    tokens: int | str | None = None,
    storage: str | Path | None = None,
    pages: Pages | None = None,
    counters: Mapping[str, float] | None = None,
) -> Contents:
    """Reads what a report says.

    Args:
        experiment: as for `frontier`, and so are the others up to `storage`.
        site: only this one.
        launch: an id, or "all"; default: the newest.
        tracking_uri: of MLflow.
        tokens: only SAEs that were trained on so many; "all": of any number, on one frontier.
        storage: read in MLflow's place.
        pages: pages of runs, where `storage` is read, which knows of none.
        counters: those of the launch, where they are known better than they were recorded.

    Raises:
        UserError: as `frontier`, or no SAE is left to report on.
    """
    rows = frontier(experiment, site, launch, tracking_uri, tokens=tokens, storage=storage)
    own = own_saes(rows)
    if own.empty:
        raise UserError(f"report: no SAE of {experiment!r} has a finite result; {'; '.join(rows.attrs['notes'])}")
    records = records_of(experiment, tracking_uri, storage)
    everything = launch == "all"
    launch_id = str(own["launch"].max())  # ids begin with a time
    about = records.about(launch_id)
    if everything or counters:
        about = dataclasses.replace(about, counters={} if everything or counters is None else counters)
    trainings = records.trainings(list(own["run_id"]))
    page_of = pages or (lambda row: records.page(str(row["run_id"])))
    found = {str(row["run_id"]): page_of(row) for _, row in rows.iterrows()}
    failed, stopped = (of(None if everything else launch_id) for of in (records.failed, records.stopped))
    stopped = [outcome for outcome in stopped if site in (None, outcome.params.get("site"))]
    early = [outcome.run_id for outcome in (*failed, *stopped) if site in (None, outcome.params.get("site"))]
    return Contents(
        experiment=experiment,
        launch="all" if everything else launch_id,
        rows=rows,
        answer=answer(rows, tracking_uri, tokens == MIXED),
        about=about,
        trainings=trainings,
        failures=[(name, why) for name, _, why in (outcome.failure.partition(": ") for outcome in failed)],
        stopped=[(outcome.tags[TRIAL], told(json.loads(outcome.tags[STOPPED]))) for outcome in stopped],
        ended_early=list(records.trainings(early).values()),
        pages={run: page for run, page in found.items() if page is not None},
        missing=list(_missing(trainings, about)),
        over_tokens=_over_tokens(frontier(experiment, site, launch, tracking_uri, tokens=MIXED, storage=storage)),
    )


def _over_tokens(rows: pd.DataFrame) -> pd.DataFrame:
    """The table rows of trials with snapshots, of SAEs of all numbers of tokens."""
    return rows[rows["run_id"].isin(rows.loc[rows["snapshot"], "run_id"])]


def _missing(trainings: Mapping[str, Series], about: About) -> list[str]:
    """What could not be had."""
    told = []
    without = sum(not training.get("loss") for training in trainings.values())
    if without:
        told.append(f"training curves: {without} of {len(trainings)} trials have none where this report was read from")
    if "forward_ratio" not in about.counters:
        told.append("forward ratio and number of evaluations: not recorded for what this report is of")
    return told


def title_of(experiment: str, settings: Mapping[str, str], rows: pd.DataFrame) -> str:
    """`quickstart: model builtin, data builtin, 400,000 tokens`."""
    return f"{experiment}: {', '.join(described(settings, rows))}"


def described(settings: Mapping[str, str], rows: pd.DataFrame) -> list[str]:
    """`model builtin`, `data builtin`, `400,000 tokens`: what the SAEs are of, as far as it is known.

    Args:
        settings: those of `About`; others are not told.
        rows: of the frontier.
    """
    names = {"model": "model", "dataset": "data", "activations": "activations"}
    told = [f"{name} {settings[key]}" for key, name in names.items() if settings.get(key)]
    budgets = sorted(set(own_saes(rows)["tokens"]))
    return [*told, " and ".join(f"{tokens:,}" for tokens in budgets) + " tokens"]


def answer(rows: pd.DataFrame, tracking_uri: str | None, mixed_tokens: bool = False) -> list[str]:
    """How the kinds of SAEs of a frontier compare, in sentences; where they cannot be compared, a line that says so.

    SAEs of each number of tokens are compared among themselves, unless they share one frontier.

    Args:
        rows: of a frontier.
        tracking_uri: of MLflow, where the sums are.
        mixed_tokens: they share one.
    """
    own = own_saes(rows)
    budgets = [own] if mixed_tokens else [group for _, group in own.groupby("tokens")]
    told = []
    for group in budgets:
        where = f" ({group['tokens'].iloc[0]:,} tokens)" if len(budgets) > 1 else ""
        told += [line + where for line in _compared(group, tracking_uri, mixed_tokens)]
    return told


def _compared(rows: pd.DataFrame, tracking_uri: str | None, mixed_tokens: bool) -> list[str]:
    kinds = sorted(set(labels(rows)))
    if len(kinds) < 2:
        return [f"All SAEs here are {kinds[0]}: there is nothing to compare them with.", *_ranges(rows)]
    base = None if DEFAULT_BASE["architecture"] in kinds else kinds[0]
    try:
        return compare(rows, base=base, tracking_uri=tracking_uri, mixed_tokens=mixed_tokens).sentences
    except UserError as error:
        return [f"These SAEs cannot be compared: {error}", *_ranges(rows)]


def _ranges(rows: pd.DataFrame) -> list[str]:
    """From where to where the frontier of each site goes."""
    told = []
    quality = quality_of(rows)
    for site, group in rows[rows["on_frontier"]].groupby("site"):
        values = quality.of(group)
        ends = [f"L0 {group['l0'].iloc[n]:.3g} at {quality.name} {values.iloc[n]:.4f}" for n in (0, -1)]
        span = ends[0] if len(group) == 1 else " to ".join(ends)
        told.append(f"At {site} the frontier of {count(len(group), 'SAE')} goes from {span}.")
    return told
