"""A sweep as one HTML page: what it found, its charts, what failed, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gsae_ray.errors import UserError

if TYPE_CHECKING:
    from gsae_ray.results.report.contents import Contents

SUFFIX = ".html"
REPORT = "report.html"
"""What it is called, unless something else is asked for; in the folder of a launch, too."""


def report(
    experiment: str,
    out: str | Path = REPORT,
    site: str | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    tokens: int | str | None = None,
    storage: str | Path | None = None,
) -> Path:
    """Writes a sweep as one HTML page that opens from disk, without a network.

    Args:
        experiment: the MLflow experiment, by default the sweep's name.
        out: the file; what is there is replaced.
        site: only this one.
        launch: an id, or "all"; default: the newest.
        tracking_uri: of MLflow; default: MLFLOW_TRACKING_URI, or `mlflow.db` in the working directory.
        tokens: only SAEs that were trained on so many; "all": of any number, on one frontier.
        storage: read the sweep's own storage in MLflow's place; there are no links to runs then.

    Returns:
        the file.

    Raises:
        UserError: `out` does not end in .html, or cannot be written, or as `gsae_ray.frontier`.
    """
    out = Path(out)
    if out.suffix.lower() != SUFFIX:
        raise UserError(f"--out: {out.name} does not end in {SUFFIX}; a report is written as HTML")
    from gsae_ray.files import check_writable  # here and below: what the command's help does without

    check_writable(out, "--out")
    from gsae_ray.results.report.contents import gather

    write(gather(experiment, site, launch, tracking_uri, tokens, storage), out)
    return out


def write(contents: Contents, out: Path) -> None:
    """Writes the page of what was gathered."""
    from gsae_ray.files import write_atomically
    from gsae_ray.results.report.page import render

    write_atomically(out, render(contents).encode())
