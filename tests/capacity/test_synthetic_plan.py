"""What `plan` says of a sweep without a language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from synthetic_sweeps import SWEEP, sweep

from gsae_ray.capacity.forecast import forecast
from gsae_ray.cli.main import main
from gsae_ray.errors import UserError


def test_rows_and_bytes_are_those_of_the_longest_trial() -> None:
    cost = forecast(sweep(), slots=1)
    assert (cost.trials, cost.blocks, cost.rows) == (2, 4, 156 * 128)
    assert cost.block_bytes == 5000 * 16 * 4
    assert cost.notices == () or all("dtype" not in notice for notice in cost.notices)
    assert {(kind.d_in, kind.d_sae) for kind in cost.kinds} == {(16, 24), (16, 36)}


def test_rows_cost_what_is_drawn_for_them() -> None:
    base = forecast(sweep(), slots=1)
    more = forecast(sweep(model={"features": 48}), slots=1)
    twice = forecast(sweep(evaluation={"tokens": 4000}), slots=1)
    assert 1.5 * base.model_flops < more.model_flops < 2 * base.model_flops
    assert twice.evaluation_flops == pytest.approx(2 * base.evaluation_flops)
    assert twice.model_flops == base.model_flops


def test_the_plan_speaks_of_synthetic_rows(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(SWEEP))
    answer = CliRunner().invoke(main, ["plan", str(file), "--storage", str(tmp_path), "--slots", "1"])
    assert answer.exit_code == 0, answer.output
    assert "synthetic rows: " in answer.output and "beside them the synthetic rows" in answer.output
    assert "language model" not in answer.output


def test_directions_that_cannot_be_had_are_told_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"^model\.coherence: 0\.18 was not reached"):
        forecast(sweep(model={"features": 30, "d_in": 16, "coherence": 0.18, "hierarchy": None}))
