"""The report of a launch, written as it ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gsae_ray.driver.begin import Launch
from gsae_ray.errors import first_line
from gsae_ray.results.report import REPORT, write
from gsae_ray.results.report.contents import gather

_LOG = logging.getLogger(__name__)


def write_report(
    launch: Launch, rows: pd.DataFrame, counters: Mapping[str, float], page: Callable[[str], str | None]
) -> Path | None:
    """Writes the report of a launch to its folder, from storage. What goes wrong is said, and ends nothing.

    Args:
        launch: whose trials have ended.
        rows: its frontier, as MLflow has it, which knows the runs; or as storage has it.
        counters: what was produced for it.
        page: run -> the address of its page.

    Returns:
        the file, if there is one.
    """
    runs = {_key(row): str(row["run_id"]) for _, row in rows.iterrows()}
    out = launch.own_folder / REPORT
    try:
        contents = gather(
            launch.prepared.sweep.experiment_name,
            launch=launch.id,
            storage=launch.folder.parent,
            pages=lambda row: page(runs[_key(row)]) if _key(row) in runs else None,
            counters={name: value for name, value in counters.items() if math.isfinite(value)},
        )
        write(contents, out)
    except Exception as error:  # whatever it is: the SAEs are trained, and the frontier is there
        _LOG.debug("the report failed", exc_info=True)
        launch.log.say(f"there is no report of this launch: {first_line(error)}; `gsae-ray report` writes one")
        return None
    return out


def _key(row: pd.Series[Any]) -> tuple[str, str, str]:
    """What names an SAE, in MLflow as in storage."""
    return str(row["trial"]), str(row["origin"]), str(row["site"])
