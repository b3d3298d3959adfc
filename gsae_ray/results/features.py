"""The tables of features of a sweep's SAEs, where the sweep has left them: with their runs, or in its storage."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from gsae_ray.errors import UserError
from gsae_ray.feature_tables import FeatureTables, read
from gsae_ray.names import own_command
from gsae_ray.saes.folder import content_hash
from gsae_ray.tracking.artifacts import FEATURES, fetch_features, runs_with_features


def with_features(run_ids: Iterable[str], tracking_uri: str | None, storage: str | Path | None) -> set[str]:
    """The SAEs among these that have tables of features.

    Args:
        run_ids: as a frontier has them: of runs; read from storage, the trials' directories.
        tracking_uri: of MLflow.
        storage: given, MLflow is not asked.

    Raises:
        UserError: MLflow does not answer.
    """
    if storage is None:
        return runs_with_features(list(run_ids), tracking_uri)
    return {run_id for run_id in run_ids if (Path(run_id) / FEATURES / "about.json").exists()}


def load_features(run_id: str, experiment: str, tracking_uri: str | None, storage: str | Path | None) -> FeatureTables:
    """The tables of one SAE; arguments as of `with_features`.

    Raises:
        UserError: there are none, or they cannot be had, or are damaged.
    """
    with _folder(run_id, tracking_uri, storage) as folder:
        tables = read(folder)
    # MLflow is sent those of its SAE only; in a trial's directory they may be of the SAE that was there before.
    if tables is None or (storage is not None and tables.about["sae"] != content_hash(Path(run_id) / "sae")):
        raise UserError(
            f"features: {run_id} has no tables of its SAE's features; have them made: "
            f"{own_command('features', experiment)}"
        )
    return tables


@contextlib.contextmanager
def _folder(run_id: str, tracking_uri: str | None, storage: str | Path | None) -> Iterator[Path]:
    if storage is not None:
        yield Path(run_id) / FEATURES
        return
    with tempfile.TemporaryDirectory(prefix="gsae-") as directory:
        yield fetch_features(run_id, directory, tracking_uri)
