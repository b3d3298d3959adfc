"""Sweep files to vary, and what comes of them: loaded, expanded to trials, or refused in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from gsae_ray.config.load import load_sweep
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError

CASES = settings(max_examples=100, deadline=None, database=None)
QUICKSTART = Path(__file__).parents[1] / "sweeps" / "quickstart.yaml"
TEXT = """\
name: test
model: {name: builtin}
dataset: {name: builtin}
sites: {layers: [1, 2], points: [resid_post, mlp_out]}
saes:
  - {architecture: gated, widths: [32, 64], l1_coefficient: [1, 2]}
  - {architecture: standard, widths: 48, l1_coefficient: 0.5, sites: {points: mlp_out}, lr: [1e-3, 3e-4], seeds: [0, 7]}
training: {tokens: 10_000, batch_size: 100, lr: 1e-3}
"""
ONE_TRIAL = """\
name: one
model: {name: builtin}
dataset: {name: builtin}
sites: {layers: [1], points: [resid_post]}
saes:
  - {architecture: gated, widths: [32], l1_coefficient: [1]}
training: {tokens: 10_000, batch_size: 100, lr: 1e-3}
"""


def load_text(tmp_path: Path, text: str, *overrides: str) -> Sweep:
    path = tmp_path / "text.yaml"
    path.write_text(text)
    return load_sweep(path, overrides)


def expand(sweep: Sweep, d_in: int = 16, provenance: Mapping[str, str] | None = None) -> list[TrialSpec]:
    return sweep.expand(dict.fromkeys(sweep.used_sites, d_in), provenance or {"model": "m", "tokens": "t"})


def error_of(path: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        expand(load_sweep(path, overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message
