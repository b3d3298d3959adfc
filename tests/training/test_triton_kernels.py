"""The kernels of the engine sparse-cuda where there is no GPU: interpreted, and compiled for GPUs elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from environments import TRITON, folder_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
HERE = Path(__file__).parent


@pytest.fixture
def triton_path(shared_folder: Path, tmp_path: Path) -> Mapping[str, str]:
    """Variables of a process that finds Triton, and no GPU."""
    folders = [HERE.parents[1], HERE.parent, folder_of(TRITON, shared_folder / "packages")]
    own = {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "CUDA_VISIBLE_DEVICES": "",
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    return {**os.environ, **own}


def test_they_compute_what_the_equations_say(triton_path: Mapping[str, str]) -> None:
    checks = HERE / "triton_checks.py"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--no-header", str(checks)]
    subprocess.run(command, env={**triton_path, "TRITON_INTERPRET": "1"}, check=True)


def test_they_compile_for_gpus(triton_path: Mapping[str, str]) -> None:
    subprocess.run([sys.executable, HERE / "triton_compile.py"], env=triton_path, check=True)
