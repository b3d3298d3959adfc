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
from gsae_ray.results.comparison import LOSS_RECOVERED, check_tokens, own_saes, quality_of
from gsae_ray.results.frontier import MIXED, frontier, outcomes_of
from gsae_ray.results.outcomes import Outcomes
from gsae_ray.results.references import load_reference
from gsae_ray.results.saved import finished_folder, run_folder
from gsae_ray.saes.config_file import with_metadata
from gsae_ray.saes.folder import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from gsae_ray.saes import SAE

FRONTIER = "frontier"
"""Key of the metadata of an SAE that `best` fetched: its row of the frontier."""
EXAMPLE_L0 = 40
"""An L0 to ask for, where some SAE has it."""


def choose(
    rows: pd.DataFrame,
    max_l0: float | None = None,
    min_loss_recovered: float | None = None,
    mixed_tokens: bool = False,
    with_references: bool = False,
) -> pd.Series[Any]:
    """The row of the best SAE: the highest loss recovered with L0 ≤ max_l0, or the lowest L0 that recovers enough.

    It is one of the sweep's own SAEs, unless `with_references`. Without a language model explained variance stands in
    the place of loss recovered (see `quality_of`).

    Raises:
        UserError: rows of several sites, or numbers of tokens that may not be mixed; not exactly one constraint, or
            nothing meets it.
    """
    if not with_references:
        rows = own_saes(rows)
    if rows.empty:
        raise UserError("best: no SAE to choose from; those of this sweep have L0 = 0 or a result that is not finite")
    sites = sorted(set(rows["site"]))
    if len(sites) > 1:
        raise UserError(f"site: this sweep has {len(sites)}, name one (one of: {', '.join(sites)})")
    if not mixed_tokens:
        check_tokens(rows)
    if (max_l0 is None) == (min_loss_recovered is None):
        raise UserError("best: give either max_l0 (e.g. 40) or min_loss_recovered (e.g. 0.95)")
    quality = quality_of(rows)
    if max_l0 is not None:
        fitting = rows[rows["l0"] <= max_l0]
        if fitting.empty:
            raise UserError(f"max_l0: no SAE has L0 <= {max_l0:g}; the lowest is {rows['l0'].min():.3g}")
        return fitting.loc[quality.of(fitting).idxmax()]
    if quality != LOSS_RECOVERED:
        raise UserError(
            "min_loss_recovered: these SAEs were evaluated without a language model, so there is no loss recovered; "
            f"give max_l0 (e.g. {math.ceil(rows['l0'].median())}) for the highest {quality.name}"
        )
    fitting = rows[rows["loss_recovered"] >= min_loss_recovered]
    if fitting.empty:
        raise UserError(
            f"min_loss_recovered: no SAE recovers {min_loss_recovered:g}; the highest is "
            f"{rows['loss_recovered'].max():.4f}"
        )
    return fitting.loc[fitting["l0"].idxmin()]


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
) -> SAE:
    """Fetches the best SAE of a sweep under a constraint; its frontier row is in `cfg.metadata["frontier"]`.

    Args:
        experiment: as for `frontier`.
        site: only SAEs of this one.
        max_l0: the highest loss recovered (without a language model: explained variance) with at most this L0.
        min_loss_recovered: the lowest L0 that recovers at least this; only of SAEs of a language model.
        launch: as for `frontier`.
        tracking_uri: as for `frontier`.
        tokens: of SAEs that were trained on so many; "all": of any number. Where there are several, one is to be said.
        storage: read the sweep's own storage in MLflow's place.
        with_references: it may be a reference, which is then read from where it was when it was evaluated.

    Raises:
        UserError: as `frontier` and `choose`; or the SAE cannot be had, or is not as it was saved.
    """
    where = launch, tracking_uri, tokens, storage, with_references
    return find_best(experiment, site, max_l0, min_loss_recovered, *where).load()


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
) -> Best:
    """Finds the best SAE of a sweep under a constraint, without fetching it; arguments and errors as of `best`."""
    rows = frontier(
        experiment, site, launch, tracking_uri, tokens=tokens, storage=storage, with_references=with_references
    )
    row = choose(rows, max_l0, min_loss_recovered, tokens == MIXED, with_references)
    return Best(row, experiment, tracking_uri, storage)


@dataclasses.dataclass(frozen=True)
class Best:
    """The best SAE of a sweep, which lies where the sweep has left it."""

    row: pd.Series[Any]
    """Of the frontier."""
    experiment: str
    tracking_uri: str | None
    storage: str | Path | None

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
        sae.cfg = sae.cfg.model_copy(update={"metadata": {**sae.cfg.metadata, FRONTIER: self.record}})
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
                cfg = with_metadata((folder / CONFIG_FILE).read_bytes(), FRONTIER, self.record)
            except ValueError as error:  # as it was saved, but by a newer version
                raise UserError(f"best: this SAE cannot be read: {first_line(error)}") from error
            weights = (folder / WEIGHTS_FILE).read_bytes()
            write_together(directory, {WEIGHTS_FILE: weights, CONFIG_FILE: (cfg + "\n").encode()})

    def _outcomes(self) -> Outcomes:
        return outcomes_of(self.experiment, self.tracking_uri, self.storage)

    def _folder(self) -> contextlib.AbstractContextManager[Path]:
        """The folder of one of the sweep's own."""
        if self.storage is None:
            return run_folder(self.row["run_id"], self.tracking_uri, "best")
        return contextlib.nullcontext(finished_folder(Path(self.row["run_id"])))


def _plain(value: Any) -> Any:
    """A value of a table row as JSON has it; None for one that is missing, NaN too."""
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
