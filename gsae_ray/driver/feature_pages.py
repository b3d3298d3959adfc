"""The page of an SAE's features as one file beside its tables, which goes to MLflow with them."""

from __future__ import annotations

from collections.abc import Sequence

from gsae_ray.errors import DamagedError
from gsae_ray.feature_tables import read
from gsae_ray.features.page import one_file
from gsae_ray.files import write_atomically
from gsae_ray.storage.trial_directory import Trial

PAGE = "features.html"
LARGEST = 20_000_000
"""Bytes: MLflow's UI hands a page to a frame as a whole. A wider SAE has a page by `gsae-ray features` only."""


def write_feature_pages(trials: Sequence[Trial]) -> None:
    """Writes the page of each SAE that has tables of features, and none yet, where it is small enough.

    Tables that are made again take the place of their whole folder, and so of the page.

    Raises:
        OSError: the disk is full.
    """
    for trial in trials:
        page, texts = (trial.directory.features / name for name in (PAGE, "contexts.parquet"))
        if page.exists() or not texts.exists() or texts.stat().st_size > LARGEST:
            continue
        try:
            tables = read(trial.directory.features)
        except DamagedError:  # who sends them to MLflow leaves them out, too
            continue
        if tables is not None and (text := one_file(tables, trial.name, LARGEST)) is not None:
            write_atomically(page, text.encode())
