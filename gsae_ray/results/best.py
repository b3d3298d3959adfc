"""The best SAE of a sweep under a constraint."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gsae_ray import saes  # its names are imported at first use: `load` imports torch
from gsae_ray.config.sections import OWN
from gsae_ray.errors import UserError, first_line
from gsae_ray.files import write_together
from gsae_ray.results.choice import Choice, choice_of
from gsae_ray.results.comparison import own_saes, snapshot_of
from gsae_ray.results.constraint import Constraint, check_alone
from gsae_ray.results.frontier import MIXED, frontier, outcomes_of
from gsae_ray.results.outcomes import Outcomes
from gsae_ray.results.references import load_reference
from gsae_ray.results.registered import chosen_by_alias
from gsae_ray.results.saved import finished_folder, run_folder
from gsae_ray.results.typed import check_fraction, check_number
from gsae_ray.saes.config_file import with_metadata
from gsae_ray.saes.folder import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from gsae_ray.saes import SAE

FRONTIER, CHOICE = "frontier", "choice"
"""Keys of the metadata of an SAE that `best` fetched: its row of the frontier, and why it was chosen."""
EXAMPLE_L0 = 40
"""An L0 to ask for, where some SAE has it."""


def choose(
    rows: pd.DataFrame,
    max_l0: float | None = None,
    min_loss_recovered: float | None = None,
    mixed_tokens: bool = False,
    with_references: bool = False,
    knee: bool = False,
    by: str | None = None,
) -> pd.Series[Any]:
    """The row of the best SAE: the highest loss recovered with L0 ≤ max_l0, or the lowest L0 that recovers enough.

    It is one of the sweep's own SAEs, unless `with_references`. Without a language model explained variance stands in
    the place of loss recovered (see `quality_of`). `knee` and `by`, and what decides between equal ones: see `choice`.

    Raises:
        UserError: rows of several sites, or numbers of tokens that may not be mixed; not exactly one constraint, or
            nothing meets it.
    """
    return choice_of(rows, _constraint(max_l0, min_loss_recovered, knee, by), mixed_tokens, with_references).row


def _constraint(max_l0: float | None, min_loss_recovered: float | None, knee: bool, by: str | None) -> Constraint:
    """What is asked for.

    Raises:
        UserError: an argument cannot be what it says.
    """
    check_number("max_l0", max_l0)
    check_number("min_loss_recovered", min_loss_recovered)
    check_fraction("min_loss_recovered", min_loss_recovered)
    return Constraint(max_l0, min_loss_recovered, knee, by)


def example_constraint(rows: pd.DataFrame) -> list[str]:
    """Options with which `gsae-ray best` finds an own SAE of these rows, of which there is at least one."""
    rows = own_saes(rows)
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
    storage: str | Path | None = None,
    with_references: bool = False,
    *,
    knee: bool = False,
    by: str | None = None,
    alias: str | None = None,
) -> SAE:
    """Fetches the best SAE of a sweep under a constraint, or by its alias in MLflow's model registry.

    Its row of the frontier is in `cfg.metadata["frontier"]`, and in `cfg.metadata["choice"]` why it was chosen, and
    from how many. Of equal SAEs it is the one with the lower L0 (with `min_loss_recovered` alone: with the higher
    quality), then the one whose trial's name comes first.

    Args:
        experiment: as for `frontier`.
        site: only SAEs of this one.
        max_l0: the highest quality with at most this L0.
        min_loss_recovered: the lowest L0 that recovers at least this; with `by`, the highest quality that does.
        launch: as for `frontier`.
        tracking_uri: as for `frontier`.
        tokens: of SAEs that were trained on so many, snapshots among them; "all": of any number. Where there are
            several, one is to be said; without it no snapshot is considered.
        storage: read the sweep's own storage in MLflow's place.
        with_references: it may be a reference, which is then read from where it was when it was evaluated.
        knee: in place of a limit: the point of the frontier of L0 and quality that is farthest above the straight line
            between its ends, log L0 and quality being scaled to that ("Kneedle").
        by: the column that is the quality, the higher the better (γ: the nearer to 1; of errors the lower); default:
            loss recovered, without a language model explained variance.
        alias: in place of all of these but `site` and `tracking_uri`: of which launch an SAE is does not matter then.
            `best-l0-32` and the like: the best of the site with at most that L0, as the last launch has left it.

    Raises:
        UserError: as `frontier`; rows of several sites or numbers of tokens; not exactly one of `max_l0`,
            `min_loss_recovered`, `knee` and `alias`, or nothing meets it; or the SAE cannot be had, or is not as it was
            saved.
    """
    where = launch, tracking_uri, tokens, storage, with_references
    return find_best(experiment, site, max_l0, min_loss_recovered, *where, knee=knee, by=by, alias=alias).load()


def candidates(
    experiment: str,
    site: str | None = None,
    max_l0: float | None = None,
    min_loss_recovered: float | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    tokens: int | str | None = None,
    storage: str | Path | None = None,
    with_references: bool = False,
    *,
    knee: bool = False,
    by: str | None = None,
    n: int | None = 5,
) -> pd.DataFrame:
    """The SAEs among which `best` chooses, the best first, without fetching any.

    Args and errors are those of `best`; `n`: at most so many, None: all.

    Returns:
        Rows of the frontier; `attrs["choice"]` says why the first is the best.
    """
    where = launch, tracking_uri, tokens, storage, with_references
    choice = find_best(experiment, site, max_l0, min_loss_recovered, *where, knee=knee, by=by).choice
    rows = choice.ranked.head(n if n is not None else len(choice.ranked)).reset_index(drop=True)
    rows.attrs["choice"] = choice.why
    return rows


def find_best(
    experiment: str,
    site: str | None,
    max_l0: float | None,
    min_loss_recovered: float | None,
    launch: str | None,
    tracking_uri: str | None,
    tokens: int | str | None,
    storage: str | Path | None,
    with_references: bool,
    knee: bool = False,
    by: str | None = None,
    alias: str | None = None,
) -> Best:
    """Finds the best SAE of a sweep under a constraint, without fetching it; arguments and errors as of `best`."""
    constraint = _constraint(max_l0, min_loss_recovered, knee, by)
    if alias is not None:
        beside = {"launch": launch, "tokens": tokens, "storage": storage, "with_references": with_references}
        check_alone(alias, {**dataclasses.asdict(constraint), **beside})
        return Best(chosen_by_alias(experiment, site, alias, tracking_uri), experiment, tracking_uri, None)
    constraint.check()
    rows = frontier(
        experiment, site, launch, tracking_uri, tokens=tokens, storage=storage, with_references=with_references
    )
    return Best(choice_of(rows, constraint, tokens == MIXED, with_references), experiment, tracking_uri, storage)


@dataclasses.dataclass(frozen=True)
class Best:
    """The best SAE of a sweep, which lies where the sweep has left it."""

    choice: Choice
    """Its row of the frontier, those of the others that meet the constraint, and why it was chosen."""
    experiment: str
    tracking_uri: str | None
    storage: str | Path | None

    @property
    def row(self) -> pd.Series[Any]:
        """Of the frontier."""
        return self.choice.row

    @property
    def record(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {name: _plain(value) for name, value in self.row.items()}

    def load(self) -> SAE:
        """Fetches it.

        Raises:
            UserError: it cannot be had, or is not as it was saved.
        """
        if self.row["origin"] != OWN:
            sae = load_reference(self._outcomes(), self.row, self.tracking_uri)
        else:
            with self._folder() as folder:
                sae = saes.load(folder)
        metadata = {**sae.cfg.metadata, FRONTIER: self.record, CHOICE: self.choice.why}
        sae.cfg = sae.cfg.model_copy(update={"metadata": metadata})
        return sae

    def save(self, directory: Path) -> None:
        """Writes what `load().save(directory)` does, in the format that it was saved in.

        The files of one of the sweep's own are copied, once they are known to be those that were saved: without torch,
        which takes longer to import than all the rest takes.

        Raises:
            UserError: as `load`.
        """
        if self.row["origin"] != OWN:  # in any format
            self.load().save(directory)
            return
        with self._folder() as folder:
            try:
                text = (folder / CONFIG_FILE).read_bytes()
                cfg = with_metadata(text, {FRONTIER: self.record, CHOICE: self.choice.why})
            except ValueError as error:  # as it was saved, but by a newer version
                raise UserError(f"best: this SAE cannot be read: {first_line(error)}") from error
            weights = (folder / WEIGHTS_FILE).read_bytes()
            write_together(directory, {WEIGHTS_FILE: weights, CONFIG_FILE: (cfg + "\n").encode()})

    def _outcomes(self) -> Outcomes:
        return outcomes_of(self.experiment, self.tracking_uri, self.storage)

    def _folder(self) -> contextlib.AbstractContextManager[Path]:
        """The folder of one of the sweep's own."""
        if self.storage is None:
            return run_folder(self.row["run_id"], self.tracking_uri, "best", snapshot_of(self.row))
        return contextlib.nullcontext(finished_folder(Path(self.row["run_id"]), snapshot_of(self.row)))


def _plain(value: Any) -> Any:
    """A value of a table row as JSON has it; None for one that is missing, NaN too."""
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
