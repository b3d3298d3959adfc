"""A local Ray for the tests of a file, and the golden sweep launched in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from golden import SWEEP, run

from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import launch
from gsae_ray.driver.prepare import PreparedSweep, prepare


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launch")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    # The GPU is a number for Ray to count: nothing that runs uses it.
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    return SWEEP


@pytest.fixture(scope="module")
def plan(home: Path, sweep: dict[str, Any]) -> PreparedSweep:
    return prepare(Sweep.model_validate(sweep), home / "runs")


@pytest.fixture(scope="module")
def launched(home: Path, sweep: dict[str, Any], request: pytest.FixtureRequest) -> launch.SweepResult:
    request.getfixturevalue("local_ray")  # which is joined
    return run(sweep, home)
