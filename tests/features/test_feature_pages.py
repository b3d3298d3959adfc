"""The page beside the tables of a launch, which goes to MLflow with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from dashboards import GATED, storage_of

from gsae_ray.driver import feature_pages
from gsae_ray.driver.feature_pages import PAGE, write_feature_pages
from gsae_ray.feature_tables import read
from gsae_ray.storage.trial_directory import Trial, TrialDirectory


def trials_in(storage: Path) -> list[Trial]:
    return [Trial(trial, TrialDirectory(storage / "small/trials" / trial.directory_name)) for trial in GATED[:3]]


def test_each_sae_with_tables_gets_one_once(tmp_path: Path) -> None:
    trials = trials_in(storage_of(tmp_path))
    damaged, kept = (trial.directory.features for trial in trials[1:])
    (damaged / "contexts.parquet").write_bytes(b"?")
    write_feature_pages(trials)
    pages = [trial.directory.features / PAGE for trial in trials]
    assert [page.exists() for page in pages] == [True, False, True]
    assert 'id="data-features_1"' in pages[0].read_text("utf-8") and read(kept) is not None
    before = pages[0].stat().st_mtime_ns
    write_feature_pages(trials)
    assert pages[0].stat().st_mtime_ns == before


def test_one_that_would_be_too_large_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = trials_in(storage_of(tmp_path))
    monkeypatch.setattr(feature_pages, "LARGEST", 200_000)
    write_feature_pages(trials)
    assert not any((trial.directory.features / PAGE).exists() for trial in trials)
