"""The golden sweep, launched once for the tests of a file, and what the tests of faults share."""

from __future__ import annotations

import fcntl
import random
from pathlib import Path
from typing import Any

import pytest
from faults import Home, Outcome, seed
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


@pytest.fixture(scope="module")
def rng() -> random.Random:
    return random.Random(seed())


@pytest.fixture(scope="session")
def quiet(shared_folder: Path, local_ray: None) -> Outcome:  # noqa: ARG001
    """The sweep of the fault tests, undisturbed; launched by one worker of pytest-xdist for all."""
    folder = shared_folder / "quiet"
    folder.mkdir(exist_ok=True)
    done = folder / "tracking_uri"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            where = Home(folder / "home")
            result = where.run()
            assert result.failures == {} and result.forward_ratio == 1.0 and result.repeated_rows == 0
            done.write_text(where.uri)
    outcome = Outcome.of(Home(folder / "home", uri=done.read_text()))
    assert len(outcome.weights) == len(outcome.frontier) == 4
    assert {len(rows) for rows in outcome.rows.values()} == {32}
    assert {len(files) for files in outcome.snapshots.values()} == {4}, "of two snapshots"
    return outcome
