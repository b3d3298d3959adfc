"""What people read of a launch in MLflow once it has ended: the note on its page, its table, and registered SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from gsae_ray.config.recipe import show
from gsae_ray.driver.begin import Launch
from gsae_ray.errors import UserError
from gsae_ray.results.columns import ALWAYS, WHERE_THEY_DIFFER
from gsae_ray.results.compare import compare
from gsae_ray.results.comparison import labels, own_saes, table_metrics
from gsae_ray.results.frontier import frontier
from gsae_ray.results.frontier_table import differing
from gsae_ray.tracking.mirror import Mirror

TABLE = "frontier.json"
"""The frontier as MLflow's UI shows a table."""


def show_launch(mirror: Mirror, launch: Launch, rows: pd.DataFrame, files: Sequence[Path]) -> None:
    """Writes the note on the page of a launch, with its table, and enters its SAEs in the model registry.

    All of it is made from what has arrived, again at every `--resume`.

    Args:
        mirror: which has everything of the launch.
        launch: whose trials have ended.
        rows: its frontier, as MLflow has it.
        files: artifacts that were logged to its run.
    """
    sweep = launch.prepared.sweep
    own = own_saes(rows)
    best = own[own["on_frontier"]]
    models = mirror.register(set(best["run_id"]), launch.own_folder) if sweep.tracking.registry else []
    table = launch.own_folder / TABLE
    first = ["site", *ALWAYS, *table_metrics(rows), "on_frontier"]
    ordered = rows[[*first, *(name for name in rows if name not in first)]]
    table.write_text(ordered.to_json(orient="split", index=False, double_precision=15))
    mirror.log_launch({}, [table])
    names = [*(path.name for path in files), TABLE]
    mirror.describe(_sentences(launch), _table(best), names, [TABLE], models)


def _sentences(launch: Launch) -> list[str]:
    """What a comparison of the launch's architectures comes to; none where they cannot be compared.

    From storage: the sums of each context, which intervals take, need not be downloaded then.
    """
    experiment, storage = launch.prepared.sweep.experiment_name, launch.folder.parent
    try:
        return compare(frontier(experiment, launch=launch.id, storage=storage)).sentences
    except UserError:
        return []


def _table(rows: pd.DataFrame) -> list[list[str]]:
    """The SAEs of a frontier as text, under a head."""
    if rows.empty:
        return []
    rows = rows.assign(architecture=labels(rows))
    settings, measured = [*differing(rows, WHERE_THEY_DIFFER), *ALWAYS], table_metrics(rows)
    head = [name.replace("_", " ") for name in (*settings, *measured)]
    lines = [
        [*(show(row[name]) for name in settings), *(f"{row[name]:.4g}" for name in measured)]
        for _, row in rows.iterrows()
    ]
    return [head, *lines]
