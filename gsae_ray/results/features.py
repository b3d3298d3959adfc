"""The tables of features of a sweep's SAEs, where the sweep has left them: with their runs, or in its storage."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from gsae_ray.errors import UserError
from gsae_ray.feature_tables import FeatureTables, read
from gsae_ray.names import own_command
from gsae_ray.storage.features import has_features
from gsae_ray.storage.launch_directory import fingerprint_of
from gsae_ray.storage.trial_directory import TrialDirectory
from gsae_ray.tracking.artifacts import fetch_features
from gsae_ray.tracking.features import runs_with_features


def with_features(rows: pd.DataFrame, tracking_uri: str | None, storage: str | Path | None) -> set[str]:
    """The SAEs among these that have tables of features: of this SAE, on its launch's held-out text, of this version.

    Others that are in their place, as of an SAE or a text of before, are none.

    Args:
        rows: of a frontier, of which `run_id` and `launch` are read.
        tracking_uri: of MLflow.
        storage: where the frontier was read from a storage: that one, and MLflow is not asked.

    Returns:
        what `run_id` says of them: ids of runs; read from storage, the trials' directories.

    Raises:
        UserError: MLflow does not answer.
    """
    if storage is None:
        return runs_with_features([str(run_id) for run_id in rows["run_id"]], tracking_uri)
    found = zip(rows["run_id"], rows["launch"], strict=True)
    return {run_id for run_id, launch in found if _has_tables(Path(run_id), str(launch))}


def _has_tables(trial: Path, launch: str) -> bool:
    heldout = fingerprint_of(trial.parents[1] / "launches" / launch)
    return heldout is not None and has_features(TrialDirectory(trial), heldout)


def load_features(run_id: str, experiment: str, tracking_uri: str | None, storage: str | Path | None) -> FeatureTables:
    """The tables of one of the SAEs that `with_features` says have some; arguments as there.

    Raises:
        UserError: there are none, or they cannot be had, or are damaged.
    """
    with features_folder(run_id, tracking_uri, storage) as folder:
        return tables_in(folder, run_id, experiment)


def tables_in(folder: Path, run_id: str, experiment: str) -> FeatureTables:
    """The tables in a folder, which are of the SAE `run_id` of an experiment.

    Raises:
        UserError: there are none, or they are damaged.
    """
    if (tables := read(folder)) is None:
        raise UserError(
            f"features: {run_id} has no tables of its SAE's features; have them made: "
            f"{own_command('features', experiment)}"
        )
    return tables


@contextlib.contextmanager
def features_folder(run_id: str, tracking_uri: str | None, storage: str | Path | None) -> Iterator[Path]:
    """The folder of an SAE's tables; where it comes from MLflow, a temporary one.

    Raises:
        UserError: it cannot be had.
    """
    if storage is not None:
        yield TrialDirectory(Path(run_id)).features
        return
    with tempfile.TemporaryDirectory(prefix="gsae-") as directory:
        yield fetch_features(run_id, directory, tracking_uri)
