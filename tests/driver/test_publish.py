"""What a launch says at its end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gsae_ray.driver.publish import publish
from gsae_ray.storage.event_log import EventLog


def test_the_secrets_of_mlflows_address_are_neither_shown_nor_logged(tmp_path: Path) -> None:
    uri = "http://127.0.0.1:1?key=hunter2"
    shown: list[str] = []
    folder = tmp_path / "swept/launches/20260101-000000-abcd"
    folder.mkdir(parents=True)
    launch: Any = SimpleNamespace(
        id=folder.name,
        trials=[],
        folder=tmp_path / "swept",
        own_folder=folder,
        log=EventLog(folder / "events.jsonl", shown.append),
        prepared=SimpleNamespace(sweep=SimpleNamespace(experiment_name="swept"), evaluation=None),
    )
    error = f"API request to {uri}/api/2.0/runs failed: Max retries exceeded with url: /?key=hunter2/api/2.0/runs"
    tracking: Any = SimpleNamespace(mirror=SimpleNamespace(damaged={}), last_error=error)
    assert not publish(launch, tracking, uri, []).mirrored
    assert shown[0].startswith("MLflow at http://127.0.0.1:1?key=*** is not up to date (API request to http://127")
    assert "hunter2" not in "".join(shown) + launch.log.path.read_text()
