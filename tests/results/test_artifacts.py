"""What is fetched from MLflow is what was saved, or an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from damage import COMMON, DAMAGES
from recorder import GATED_1, OLDER, STANDARD_1, Recorder, assert_same_weights, ends
from trials import SITE_1

from gsae_ray import saes
from gsae_ray.config.sweep import Sweep
from gsae_ray.errors import UserError
from gsae_ray.results.best import best
from gsae_ray.results.comparison import sequences
from gsae_ray.results.frontier import frontier
from gsae_ray.tracking import artifacts
from gsae_ray.tracking.parents import fetch_parents


@pytest.mark.usefixtures("recorder")
def test_files_may_take_longer_than_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps them elsewhere fetches a whole SAE before it sends the first byte."""
    waits = []

    def download(*_: object) -> None:
        waits.append(int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
        raise OSError("that is all")

    monkeypatch.setattr(artifacts, "download_sae", download)
    monkeypatch.setattr(artifacts, "download_sequences", download)
    (row, *_) = frontier("sweep").itertuples()
    with pytest.raises(UserError, match="that is all"):
        best("sweep", site=SITE_1, max_l0=1000)
    with pytest.raises(UserError, match="that is all"):
        sequences(row.run_id)
    assert min(waits) >= 120, "as MLflow itself has it"


@pytest.mark.parametrize("name", ["truncated", "one bit", "deleted", "{}", "no UTF-8"])
def test_sums_that_are_not_those_that_were_measured_are_never_handed_out(recorder: Recorder, name: str) -> None:
    experiment = f"sums {name}"
    recorder.record(experiment, OLDER, list(zip(GATED_1[:1], ends((10, 0.9)), strict=True)))
    run_id = frontier(experiment)["run_id"][0]
    assert sequences(run_id)["rows"].tolist() == [7, 6]
    for file in (recorder.folder / "mlruns").rglob("sequences.json"):
        if run_id in file.parts:
            DAMAGES[name](file)
    with pytest.raises(UserError, match=f"^sequences: .*run {run_id} ") as found:
        sequences(run_id)
    assert "\n" not in str(found.value)


def test_a_parent_that_was_fetched_and_is_damaged_is_fetched_again(recorder: Recorder, tmp_path: Path) -> None:
    recorder.record("parents", OLDER, list(zip(STANDARD_1, ends((10, 0.9)), strict=True)))
    run_id = frontier("parents")["run_id"][0]
    sweep = Sweep.model_validate(
        {
            "name": "child",
            "model": {"name": "builtin"},
            "dataset": {"name": "builtin"},
            "sites": {"layers": [1], "points": ["resid_post"]},
            "saes": [{"architecture": "rescale_shift", "widths": [16], "parent": run_id}],
            "training": {"tokens": 1024, "batch_size": 64, "lr": 1e-3},
        }
    )
    for damage in COMMON.values():
        for name in ("sae/cfg.json", "sae/sae_weights.safetensors", "sae.json"):
            parents = fetch_parents(sweep, tmp_path, recorder.uri)
            assert_same_weights(saes.load(parents[run_id]), recorder.saved("parents", OLDER, STANDARD_1[0]))
            damage(parents[run_id].parent / name)
    fetch_parents(sweep, tmp_path, recorder.uri)
    recorder_is_gone = f"sqlite:///{tmp_path / 'nothing.db'}"
    assert fetch_parents(sweep, tmp_path, recorder_is_gone) == parents, "what is whole is not fetched again"
