"""Of which SAEs of an experiment dashboards are made, and where their weights and tables lie."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gsae_ray.errors import UserError, shown, suggest
from gsae_ray.feature_tables import FeatureTables
from gsae_ray.names import own_command
from gsae_ray.results.best import find_best
from gsae_ray.results.choice import choice_of
from gsae_ray.results.comparison import own_saes
from gsae_ray.results.constraint import Constraint
from gsae_ray.results.features import features_folder, tables_in, with_features
from gsae_ray.results.frontier import MIXED, choose_launch, frontier
from gsae_ray.results.outcomes import StorageOutcomes
from gsae_ray.results.saved import finished_folder, run_folder

DEFAULT_STORAGE = "gsae_runs"


class Chosen:
    """SAEs of an experiment, and what is known of their features."""

    def __init__(
        self, experiment: str, rows: pd.DataFrame, why: str, tracking_uri: str | None, storage: str | Path | None
    ) -> None:
        """Takes rows of a frontier, and where it was read from: a storage, or without one MLflow."""
        self.experiment, self.rows, self.why = experiment, rows, why
        self.tracking_uri, self.storage = tracking_uri, storage

    def missing(self) -> list[str]:
        """The trials whose SAEs have no tables of features."""
        there = with_features(self.rows, self.tracking_uri, self.storage)
        return [str(row["trial"]) for _, row in self.rows.iterrows() if row["run_id"] not in there]

    @contextlib.contextmanager
    def at_hand(self) -> Iterator[AtHand]:
        """Their SAEs and tables, as files of this machine; each is fetched once, when it is first asked for."""
        with tempfile.TemporaryDirectory(prefix="gsae-") as folder, contextlib.ExitStack() as stack:
            yield AtHand(self, Path(folder), stack)


class AtHand:
    """SAEs and tables of `Chosen` within its context."""

    def __init__(self, chosen: Chosen, scratch: Path, stack: contextlib.ExitStack) -> None:
        self._chosen, self._stack = chosen, stack
        self._saes: dict[str, Path] = {}
        self._tables: dict[str, Path] = {}
        self.scratch = scratch
        """A temporary folder."""

    def sae(self, row: pd.Series[Any]) -> Path:
        """The folder of one of the SAEs.

        Raises:
            UserError: it cannot be had, or is not as it was saved.
        """
        run_id = str(row["run_id"])
        if run_id not in self._saes:
            self._saes[run_id] = (
                finished_folder(Path(run_id))
                if self._chosen.storage is not None
                else self._stack.enter_context(run_folder(run_id, self._chosen.tracking_uri, "features"))
            )
        return self._saes[run_id]

    def tables(self, row: pd.Series[Any]) -> FeatureTables:
        """The tables of one of them.

        Raises:
            UserError: there are none, or they cannot be had, or are damaged.
        """
        run_id = str(row["run_id"])
        if run_id not in self._tables:
            found = features_folder(run_id, self._chosen.tracking_uri, self._chosen.storage)
            self._tables[run_id] = self._stack.enter_context(found)
        return tables_in(self._tables[run_id], run_id, self._chosen.experiment)


def choose_saes(
    experiment: str,
    site: str | None = None,
    constraint: Constraint | None = None,
    *,
    trials: Sequence[str] = (),
    everything: bool = False,
    alias: str | None = None,
    launch: str | None = None,
    tokens: str | None = None,
    tracking_uri: str | None = None,
    storage: str | Path | None = None,
) -> Chosen:
    """The SAEs that dashboards are asked of: those on each site's frontier, unless something else is asked for.

    Args:
        experiment: as for `gsae_ray.frontier`.
        site: only this one.
        constraint: of which each site's best SAE is shown.
        trials: in place of that: the SAEs of these trials.
        everything: in place of that: all SAEs that have tables of features.
        alias: in place of that: the SAE that has it in MLflow's model registry.
        launch: its id; default: the newest.
        tokens: only SAEs that were trained on so many.
        tracking_uri: of MLflow.
        storage: of the launch; default: `gsae_runs` in the working directory, where that has it and no `tracking_uri`
            is given; else MLflow is read.

    Raises:
        UserError: there are none; or as `gsae_ray.best`.
    """
    if launch == "all":
        raise UserError("launch: name one; tables of features are of the held-out text of one launch")
    if alias is not None:
        found = find_best(experiment, site, None, None, None, tracking_uri, None, None, False, alias=alias)
        launch, site = str(found.row["launch"]), str(found.row["site"])
        storage = _storage_of(experiment, launch, tracking_uri, storage)
        rows = frontier(experiment, site, launch, tracking_uri, storage=storage)
        rows, why = rows[rows["trial"] == found.row["trial"]], found.choice.why
    else:
        storage = _storage_of(experiment, launch, tracking_uri, storage)
        rows = own_saes(frontier(experiment, site, launch, tracking_uri, tokens=tokens, storage=storage))
        rows = rows[~rows["snapshot"].astype(bool)]
        if everything:
            there = with_features(rows, tracking_uri, storage)
            without = len(rows) - len(there)
            rows, why = rows[rows["run_id"].isin(there)], "all that have tables"
            if without:
                why += f" of features; {without} have none, or of before: --trial NAME makes them"
            if rows.empty:
                words = [experiment, *(() if site is None else ("--site", site)), "--out", "DIR"]
                raise UserError(
                    f"--all: no SAE of {experiment!r}{f' at {site}' if site else ''} has tables of features, or they "
                    f"are of before; have those of the frontier made: {own_command('features', *words)}"
                )
        elif trials:
            rows, why = _named(rows, trials), "the trials that were named"
        elif constraint is None:
            rows, why = rows[rows["on_frontier"]], "the SAEs on the frontier of L0 and quality"
        else:
            choices = [choice_of(group, constraint, tokens == MIXED) for _, group in rows.groupby("site")]
            why = "; ".join(choice.why for choice in choices)
            rows = pd.DataFrame([choice.row for choice in choices], columns=rows.columns)
    if rows.empty:
        raise UserError(f"features: no SAE of {experiment!r} is on a frontier, or it was not evaluated to the end")
    return Chosen(experiment, pd.DataFrame(rows), why, tracking_uri, storage)


def _named(rows: pd.DataFrame, trials: Sequence[str]) -> pd.DataFrame:
    """The rows of some trials."""
    known = rows["trial"].tolist()
    for name in trials:
        if name not in known:
            raise UserError(f"--trial: no finished SAE {shown(name)} here; {suggest(name, known)}")
    return rows[rows["trial"].isin(trials)]


def _storage_of(
    experiment: str, launch: str | None, tracking_uri: str | None, storage: str | Path | None
) -> str | Path | None:
    """The storage that is asked for, or the default one where it has this launch and MLflow is not asked for."""
    if storage is not None or tracking_uri is not None:
        return storage
    try:
        choose_launch(StorageOutcomes(DEFAULT_STORAGE, experiment), experiment, launch)
    except UserError:
        return None
    return DEFAULT_STORAGE
