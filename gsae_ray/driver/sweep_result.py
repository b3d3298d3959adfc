"""What `gsae_ray.run` returns."""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path

import pandas as pd

from gsae_ray.driver.display import clock
from gsae_ray.errors import UserError
from gsae_ray.results.best import best
from gsae_ray.results.frontier import frontier
from gsae_ray.saes import SAE


@dataclasses.dataclass(frozen=True, repr=False)
class SweepResult:
    """What a launch came to."""

    experiment: str
    launch_id: str
    tracking_uri: str
    storage: Path
    mirrored: bool
    """Whether all has arrived in MLflow; else the frontier is read from storage."""
    picture: Path | None
    """The frontier, if any trial finished."""
    failures: dict[str, str]
    """Trial -> why it failed."""
    forward_ratio: float
    """Rows that went through the language model ÷ distinct rows; NaN when nothing was trained."""
    repeated_rows: int
    """Rows that went through it again since a fault had taken them; not in the ratio."""
    seconds: float
    interrupted: bool = False
    """Whether a notebook has interrupted it: what was finished is here, and `run(…, resume=True)` goes on."""

    def frontier(
        self,
        site: str | None = None,
        encoder: str = "own",
        tokens: int | str | None = None,
        with_references: bool = False,
        with_stopped: bool = False,
    ) -> pd.DataFrame:
        """See `gsae_ray.frontier`."""
        where = self.launch_id, self.tracking_uri, encoder, tokens, None if self.mirrored else self.storage
        return frontier(self.experiment, site, *where, with_references, with_stopped)

    def best(
        self,
        site: str | None = None,
        max_l0: float | None = None,
        min_loss_recovered: float | None = None,
        tokens: int | str | None = None,
        with_references: bool = False,
        *,
        knee: bool = False,
        by: str | None = None,
    ) -> SAE:
        """See `gsae_ray.best`."""
        where = self.launch_id, self.tracking_uri, tokens, None if self.mirrored else self.storage
        return best(self.experiment, site, max_l0, min_loss_recovered, *where, with_references, knee=knee, by=by)

    def __repr__(self) -> str:
        told = [f"{self.experiment}: {describe_end(self)}"]
        if self.interrupted:
            told.append("interrupted; what was finished is kept, and run(…, resume=True) goes on")
        told += [f"failed: {trial}: {reason}" for trial, reason in self.failures.items()]
        if not self.mirrored:
            told.append(f"MLflow does not have all of it: read from {self.storage}")
        return "\n".join([*told, ".frontier() is its table, .best(site=…, max_l0=40) an SAE"])

    def _repr_html_(self) -> str:
        """As a notebook shows it: with the frontier, if any trial finished."""
        told = "".join(f"<p>{html.escape(line)}</p>" for line in repr(self).splitlines())
        try:
            return f"{told}{self.frontier()._repr_html_()}"
        except UserError as error:
            return f"{told}<p>{html.escape(str(error))}</p>"


def describe_end(result: SweepResult) -> str:
    """One line: how long the launch took, and how often the model ran."""
    ratio = f", forward ratio {result.forward_ratio:.2f}" if result.forward_ratio == result.forward_ratio else ""
    if result.repeated_rows:
        ratio += f" and {result.repeated_rows:,} rows again after faults"
    return f"launch {result.launch_id} took {clock(result.seconds)}{ratio}"
