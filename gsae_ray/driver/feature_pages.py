"""The page of an SAE's features as one file beside its tables, which goes to MLflow with them."""

from __future__ import annotations

from collections.abc import Sequence

from gsae_ray.errors import DamagedError, first_line
from gsae_ray.feature_tables import read
from gsae_ray.feature_tables.folder import ABOUT, NAME, PAGE
from gsae_ray.features.page import one_file, rendered
from gsae_ray.files import write_atomically
from gsae_ray.storage.trial_directory import Trial

LARGEST = 20_000_000
"""Bytes: MLflow's UI hands a page to a frame as a whole. A wider SAE has a page by `gsae-ray features` only."""


def write_feature_pages(trials: Sequence[Trial]) -> list[str]:
    """Writes the page of each SAE that has tables of features, and none yet.

    Tables that are made again take the place of their whole folder, and so of the page. Where it would be too large, a
    page in its place says so, which also takes the place of one that MLflow has of tables of before.

    Returns:
        a line for each page that cannot be written, and why.
    """
    failed = []
    for trial in trials:
        page = trial.directory.features / PAGE
        if page.exists():
            continue
        try:
            if (text := _page(trial)) is not None:
                write_atomically(page, text.encode())
        except DamagedError:  # who sends them to MLflow says which tables count
            continue
        except (OSError, ValueError) as error:  # a full disk; a number that is not finite
            failed.append(f"the page of the features of {trial.name} is not written: {first_line(error)}")
    return failed


def _page(trial: Trial) -> str | None:
    """The page, or one that says that it would be too large; None where there are no tables."""
    folder = trial.directory.features
    about = ABOUT.read(folder / NAME)
    if about is None:
        return None
    texts = folder / "contexts.parquet"
    if not texts.exists() or texts.stat().st_size <= LARGEST:
        tables = read(folder)
        text = None if tables is None else one_file(tables, trial.name, LARGEST)
        if text is not None:
            return text
    return rendered("too_large.html", {"label": about["label"], "trial": trial.name, "megabytes": LARGEST // 10**6})
