"""The golden sweep, launched once for the tests of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden import SWEEP, run

from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import launch
from gsae_ray.driver.prepare import PreparedSweep, prepare


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launch")


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    return SWEEP


@pytest.fixture(scope="module")
def plan(home: Path, sweep: dict[str, Any]) -> PreparedSweep:
    return prepare(Sweep.model_validate(sweep), home / "runs")


@pytest.fixture(scope="module")
def launched(home: Path, sweep: dict[str, Any], local_ray: None) -> launch.SweepResult:  # noqa: ARG001
    return run(sweep, home)
