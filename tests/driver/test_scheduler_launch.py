"""A launch with `scheduler.stop_dominated`: what is beaten stops, resumes as stopped, and is trained on without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden import SHORT, run
from mlflow.tracking import MlflowClient

from gsae_ray.results.comparison import STOPPED_AT
from gsae_ray.storage.stopped import StoppedTrials
from gsae_ray.storage.trial_directory import TrialDirectory

GRID: dict[str, Any] = {
    **SHORT,
    "sites": {"layers": [2], "points": ["resid_post"]},
    "saes": [{"architecture": "gated", "widths": [64], "l1_coefficient": [4], "lr": [1e-3, 1e-5]}],
    "training": {**SHORT["training"], "seeds": [0, 1]},
}
SCHEDULED = {**GRID, "scheduler": {"stop_dominated": True, "grace_tokens": 12_000}}


def statuses(uri: str, experiment: str, launch_id: str) -> dict[str, str]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    query = f"tags.`gsae.launch` = '{launch_id}' and tags.`gsae.kind` = 'trial'"
    return {run.data.tags["gsae.trial"]: run.info.status for run in client.search_runs([found.experiment_id], query)}


@pytest.mark.slow
def test_the_slower_learner_stops_and_a_launch_without_a_scheduler_trains_it_on(tmp_path: Path) -> None:
    result = run(SCHEDULED, tmp_path)
    assert result.failures == {}
    rows = result.frontier()
    assert rows["lr"].tolist() == [1e-3, 1e-3]
    assert any("2 trials were stopped by the scheduler" in note for note in rows.attrs["notes"])
    with_stopped = result.frontier(with_stopped=True)
    stopped = with_stopped[with_stopped[STOPPED_AT].notna()]
    assert stopped["lr"].tolist() == [1e-5, 1e-5] and set(stopped[STOPPED_AT]) == {12_000}
    assert not stopped["on_frontier"].any() and stopped["l0"].iloc[0] > 0, "the second had not come as far"

    folder = tmp_path / "runs/golden"
    decided = StoppedTrials(folder / "launches" / result.launch_id)
    assert all(name in decided for name in stopped["trial"])
    directories = [TrialDirectory(next(folder.glob(f"trials/{name}-*"))) for name in stopped["trial"]]
    assert all(directory.newest_checkpoint and not directory.done for directory in directories)
    told = statuses(result.tracking_uri, "golden", result.launch_id)
    assert {told[name] for name in stopped["trial"]} == {"KILLED"}
    assert {told[name] for name in rows["trial"]} == {"FINISHED"}

    attempts = [directory.newest_attempt for directory in directories]
    again = run(SCHEDULED, tmp_path, resume=True)
    assert again.launch_id == result.launch_id and len(again.frontier()) == 2
    assert [directory.newest_attempt for directory in directories] == attempts

    checkpoints = [directory.newest_checkpoint for directory in directories]
    whole = run(GRID, tmp_path)
    assert len(whole.frontier()) == 4

    assert all(directory.done for directory in directories)
    assert all(directory.newest_attempt > before for directory, before in zip(directories, attempts, strict=True))
    assert min(checkpoints) > 0
