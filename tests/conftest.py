"""What tests share: one thread (the last bits of a sum depend on it), quiet libraries."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests that want the hub's absence to be felt unset it
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the package is compiled once, not by each of hundreds of processes

import datasets
import pytest
import torch
from environments import neighbours

gc.disable()  # until tests begin: importing libraries makes a million objects, and looking through them takes seconds

sys.dont_write_bytecode = False

MOST_WORKERS = 4  # each may start a Ray of its own
LONGEST = "test_launch"
"""Of the quick tests that start Ray: it begins when half of the others are left, so that they end together."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A single file is run in this process: there is nothing to share out. One more than cores, as tests wait, too."""
    if len(config.args) == 1 and Path(config.args[0].partition("::")[0]).is_file():
        return 0
    return min((os.cpu_count() or 1) + 1, MOST_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests come first: what is quick fails early. Then the files that start Ray."""
    on_ray = Counter(item.path for item in items if "local_ray" in getattr(item, "fixturenames", ()))
    items.sort(key=lambda item: (item.path in on_ray, -on_ray[item.path]))
    longest = [item for item in items if item.path.stem == LONGEST]
    others = [item for item in items if item.path.stem != LONGEST]
    begin = len(others) // 2
    while begin < len(others) and others[begin].path == others[begin - 1].path:  # between two files
        begin += 1
    items[:] = others[:begin] + longest + others[begin:]


def pytest_collection_finish() -> None:
    """What libraries have made stays to the end: the collector need not look at it again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `datasets` reads is cached in a place of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        yield


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this process's own. It counts one GPU, which nothing uses where the machine has none."""
    import ray  # takes a second: for those who need it

    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A temporary folder that all workers of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def neighbours_python(shared_folder: Path) -> Path:
    """The Python of an environment with the libraries whose formats we read; one for all workers of pytest-xdist."""
    return neighbours(shared_folder / "environments")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; without the right to mount one the test is skipped."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
