"""A worker that cannot run a trial's engine says so, and stops the sweep; it takes no other engine in its place."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from golden import SHORT, run

from gsae_ray.errors import SweepStoppedError

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is here"),
]


@pytest.mark.slow
def test_a_worker_without_triton_stops_the_sweep_with_what_is_missing(tmp_path: Path) -> None:
    """Ray believes in a GPU here."""
    saes = SHORT["saes"][:1]
    sweep = {**SHORT, "saes": saes, "training": {**SHORT["training"], "engine": "sparse-cuda"}, "trials": {"gpus": 1}}
    said = r"training.engine: sparse-cuda: Triton, .* engine: dense does without \(trial blocks.*_w256_.* on .*\)"
    with pytest.raises(SweepStoppedError, match=said):
        run(sweep, tmp_path)
