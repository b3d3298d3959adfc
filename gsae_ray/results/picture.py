"""The picture of a sweep's frontier, from where the sweep was recorded."""

from __future__ import annotations

from pathlib import Path

from gsae_ray.files import check_writable
from gsae_ray.results.frontier import frontier
from gsae_ray.results.picture_formats import check_picture
from gsae_ray.results.plots import save_frontier
from gsae_ray.results.report.contents import title_of
from gsae_ray.results.report.records import records_of


def plot(
    experiment: str,
    out: str | Path = "frontier.png",
    site: str | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    tokens: int | str | None = None,
    storage: str | Path | None = None,
) -> Path:
    """Writes the frontier of a sweep as a picture, with error bars: PNG, SVG or PDF, by the suffix.

    Args:
        experiment: the MLflow experiment, by default the sweep's name.
        out: the file; what is there is replaced.
        site: only this one.
        launch: an id, or "all"; default: the newest.
        tracking_uri: of MLflow; default: MLFLOW_TRACKING_URI, or `mlflow.db` in the working directory.
        tokens: only SAEs that were trained on so many; "all": of any number, on one frontier.
        storage: read the sweep's own storage in MLflow's place.

    Returns:
        the file.

    Raises:
        UserError: another suffix, `out` cannot be written, or as `gsae_ray.frontier`.
    """
    out = Path(out)
    check_picture(out)
    check_writable(out, "--out")
    rows = frontier(experiment, site, launch, tracking_uri, tokens=tokens, storage=storage)
    about = records_of(experiment, tracking_uri, storage).about(str(rows["launch"].max()))
    save_frontier(rows, out, title=title_of(experiment, about.settings, rows))
    return out
