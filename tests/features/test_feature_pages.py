"""The page beside the tables of a launch, which goes to MLflow with them."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from dashboards import FEATURES, GATED, made_up, storage_of
from mlflow.tracking import MlflowClient
from random_feature_tables import log_tables
from recorder import NEWER, Recorder
from trials import FINGERPRINT

from gsae_ray.config.trial import TrialSpec
from gsae_ray.driver import feature_pages
from gsae_ray.driver.feature_pages import write_feature_pages
from gsae_ray.errors import UserError
from gsae_ray.feature_tables import FeatureTables, read
from gsae_ray.feature_tables.folder import PAGE
from gsae_ray.features.chosen import choose_saes
from gsae_ray.features.write import write_dashboards
from gsae_ray.results.frontier import frontier
from gsae_ray.storage.trial_directory import Trial, TrialDirectory
from gsae_ray.tracking.features import record_features


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.chdir(tmp_path)  # MLflow puts the artifacts of an SQLite store into the working directory
    return Recorder(tmp_path)


def trials_in(storage: Path) -> list[Trial]:
    return [Trial(trial, TrialDirectory(storage / "small/trials" / trial.directory_name)) for trial in GATED[:3]]


def test_each_sae_with_tables_gets_one_once(tmp_path: Path) -> None:
    trials = trials_in(storage_of(tmp_path))
    damaged, kept = (trial.directory.features for trial in trials[1:])
    (damaged / "contexts.parquet").write_bytes(b"?")
    assert write_feature_pages(trials) == []
    pages = [trial.directory.features / PAGE for trial in trials]
    assert [page.exists() for page in pages] == [True, False, True]
    assert 'id="data-features_1"' in pages[0].read_text("utf-8") and read(kept) is not None
    before = pages[0].stat().st_mtime_ns
    write_feature_pages(trials)
    assert pages[0].stat().st_mtime_ns == before


def test_in_the_place_of_one_that_would_be_too_large_a_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = trials_in(storage_of(tmp_path))
    for most in (200_000, 1000):  # found while it is written, and from the tables' size
        monkeypatch.setattr(feature_pages, "LARGEST", most)
        assert write_feature_pages(trials) == []
        for trial in trials:
            page = trial.directory.features / PAGE
            text = page.read_text("utf-8")
            assert f'--trial "{trial.name}"' in text and "would be larger than" in text and len(text) < 20_000
            page.unlink()


def test_one_that_cannot_be_written_is_said_and_the_others_are(tmp_path: Path) -> None:
    def odd(trial: TrialSpec, number: int) -> FeatureTables:
        made = made_up(trial, number)
        if number != 1:
            return made
        means = pa.array([math.nan] * FEATURES, pa.float32())
        place = made.features.schema.get_field_index("mean_activation")
        features = made.features.set_column(place, made.features.schema.field(place), means)
        return dataclasses.replace(made, features=features)

    trials = trials_in(storage_of(tmp_path, tables=odd))
    (said,) = write_feature_pages(trials)
    assert said.startswith(f"the page of the features of {trials[1].name} is not written: Out of range float")
    assert [(trial.directory.features / PAGE).exists() for trial in trials] == [True, False, True]
    with pytest.raises(UserError, match=f"features: the page of {trials[1].name} cannot be written: Out of range"):
        write_dashboards(choose_saes("small", storage=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mlflow_gets_a_page_that_is_written_later_and_one_that_replaces_it(recorder: Recorder) -> None:
    trial = GATED[0]
    recorder.record("small", NEWER, [(trial, {"l0": 20.0, "loss_recovered": 0.9})])
    client = MlflowClient(recorder.uri)
    (run_id,) = frontier("small", tracking_uri=recorder.uri)["run_id"]
    directory = TrialDirectory(recorder.folder / "small" / NEWER / trial.directory_name)
    log_tables(client, run_id, made_up(trial, 0), directory.features)
    pages = []
    for page in (None, "the page", "a page that says why there is none"):
        if page is not None:
            (directory.features / PAGE).write_text(page)
        record_features(recorder.uri, "small", NEWER, [Trial(trial, directory)], FINGERPRINT)
        with tempfile.TemporaryDirectory() as folder:
            fetched = Path(client.download_artifacts(run_id, "features", folder)) / PAGE
            pages.append(fetched.read_text() if fetched.exists() else None)
    assert pages == [None, "the page", "a page that says why there is none"]
