"""The SAEs of experiments that a study can be about, and the tables of their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gsae_ray.config.site import Site
from gsae_ray.errors import UserError
from gsae_ray.feature_tables import FeatureTables
from gsae_ray.results.comparison import own_saes
from gsae_ray.results.features import load_features, with_features
from gsae_ray.results.frontier import frontier
from gsae_ray.results.report.records import records_of
from gsae_ray.study.subjects import REMEDY, Subject


def subjects_of(
    experiments: Sequence[str],
    site: str | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    storage: str | Path | None = None,
) -> list[Subject]:
    """The SAEs of experiments, some of which have tables of features; arguments as of `gsae_ray.frontier`.

    Raises:
        UserError: no SAE of an experiment has tables; or as `gsae_ray.frontier`.
    """
    found: list[Subject] = []
    for experiment in experiments:
        rows = own_saes(frontier(experiment, site, launch, tracking_uri, storage=storage))
        there = with_features(rows, tracking_uri, storage)
        if not there:
            raise UserError(
                f"EXPERIMENT: no SAE of {experiment!r}{f' at {site}' if site else ''} has tables of features; have "
                f"them made: {REMEDY}"
            )
        model = records_of(experiment, tracking_uri, storage).about(str(rows["launch"].max())).settings.get("model")
        found += [_subject(experiment, model or experiment, row, row["run_id"] in there) for _, row in rows.iterrows()]
    return found


def tables_from(tracking_uri: str | None, storage: str | Path | None) -> Callable[[Subject], FeatureTables]:
    """Reads the tables of an SAE from where its experiment has them."""
    return lambda subject: load_features(subject.run_id, subject.experiment, tracking_uri, storage)


def _subject(experiment: str, model: str, row: pd.Series[Any], has_tables: bool) -> Subject:
    site = Site(str(row["site"]))
    return Subject(
        experiment,
        model,
        site.name,
        site.layer,
        site.point,
        str(row["architecture"]),
        str(row["trial"]),
        str(row["run_id"]),
        float(row["l0"]),
        float(row["loss_recovered"]),
        str(row["recipe"]),
        int(row["tokens"]),
        has_tables,
    )
