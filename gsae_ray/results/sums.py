"""What evaluations summed over each held-out context, fetched for rows of a frontier, from MLflow or from a storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsae_ray.errors import DamagedError, UserError
from gsae_ray.evaluation.bootstrap import Sequences
from gsae_ray.results.comparison import sequences, snapshot_of, subject_of
from gsae_ray.storage.evaluations import EVALUATION, EvaluationRecord, Subject
from gsae_ray.storage.launch_directory import EVALUATED
from gsae_ray.storage.trial_directory import TrialDirectory


def have_runs(rows: pd.DataFrame) -> bool:
    """Whether every table row names a run, which keeps sums; numbers from a paper have none."""
    return "run_id" in rows and bool((rows["run_id"].notna() & (rows["run_id"] != "")).all())


def sums_of_rows(rows: pd.DataFrame, tracking_uri: str | None) -> list[Sequences]:
    """The sums of each table row, all of which name a run.

    Args:
        rows: of a frontier.
        tracking_uri: of MLflow; not asked for rows that were read from a storage.

    Raises:
        UserError: a run has none that can be had.
    """
    return [_sums_of(row, tracking_uri) for _, row in rows.iterrows()]


def _sums_of(row: pd.Series[Any], tracking_uri: str | None) -> Sequences:
    pursuit_l0 = int(row["pursuit_l0"]) if "pursuit_l0" in row else None
    folder = Path(row["run_id"])
    if not folder.is_absolute():  # the id of a run in MLflow
        return sequences(row["run_id"], tracking_uri, pursuit_l0, snapshot_of(row))
    try:
        record = _record_in(folder, row["launch"], subject_of(row))
    except DamagedError as error:
        raise UserError(str(error)) from error
    if record is None:
        raise UserError(
            f"run_id: {folder} has no evaluation of launch {row['launch']} any more; read the frontier again"
        )
    return {name: np.array(values, np.float64) for name, values in record["sequences"].items()}


def _record_in(folder: Path, launch: str, subject: Subject) -> EvaluationRecord | None:
    """The evaluation, on the held-out contexts of a launch, of a trial's folder, or of a reference's, in a storage."""
    sweeps = [folder.parents[1]] if (folder / "trial.json").exists() else folder.parents[1].glob("*")
    for sweep in sweeps:
        asked = EVALUATED.read(sweep / "launches" / launch / "evaluation.json")
        if asked is not None and (folder / "trial.json").exists():
            return TrialDirectory(folder).evaluation(asked["fingerprint"], subject)
        if asked is not None:
            return EVALUATION.read(folder / f"{asked['fingerprint'][:16]}.json")
    return None
