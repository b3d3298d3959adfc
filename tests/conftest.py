"""What tests share: one thread (the last bits of a sum depend on it), quiet libraries, a small sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests that want the hub's absence to be felt unset it
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def small_sweep() -> dict[str, Any]:
    """The quickstart cut down to four trials of 16,384 tokens at two sites."""
    return {
        "name": "small",
        "model": {"name": "builtin", "context_size": 64},
        "dataset": {"name": "builtin", "shuffle_tokens": 4096},
        "sites": {"layers": [1, 2], "points": ["resid_post"]},
        "saes": [
            {"architecture": "gated", "widths": [128], "l1_coefficient": [2]},
            {"architecture": "standard", "widths": [128], "l1_coefficient": [1]},
        ],
        "training": {"tokens": 16_384, "batch_size": 128, "lr": 1e-3},
        "evaluation": {"tokens": 2048},
    }
