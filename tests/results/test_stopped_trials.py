"""Trials that a scheduler has stopped: shown where that is asked for, and in no comparison with the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow_stores import new_store
from recorder import OLDER
from reports import made_up_rows
from trials import FINGERPRINT, REQUEST, begin, expand, finish

import gsae_ray
from gsae_ray.errors import UserError
from gsae_ray.results.choice import choice_of
from gsae_ray.results.comparison import l0_ratio
from gsae_ray.results.constraint import Constraint
from gsae_ray.results.frontier_table import FrontierTable
from gsae_ray.results.grids import at_edges
from gsae_ray.results.plots import plot_frontier
from gsae_ray.storage.launch_directory import EVALUATED, LAUNCH
from gsae_ray.storage.stopped import StoppedTrials
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.mirror import Mirror


@pytest.fixture
def rows() -> FrontierTable:
    """A frontier with a stopped trial that seems better than all others, measured on fewer contexts."""
    table = made_up_rows(rates=[1e-3, 3e-3])
    table = table[table["site"] == table["site"].iloc[0]].assign(snapshot=False, stopped_at=float("nan"))
    best = table.iloc[:1].assign(trial="stopped", stopped_at=100_000.0, l0=12.0, loss_recovered=0.999, lr=1e-2)
    return FrontierTable(pd.concat([table, best.assign(on_frontier=False)], ignore_index=True))


def test_no_stopped_trial_is_chosen(rows: FrontierTable) -> None:
    for constraint in (Constraint(max_l0=40), Constraint(min_loss_recovered=0.9), Constraint(knee=True)):
        ranked = choice_of(rows, constraint).ranked
        assert len(ranked) > 1 and "stopped" not in set(ranked["trial"])


def test_no_stopped_trial_is_compared(rows: FrontierTable) -> None:
    found, without = gsae_ray.compare(rows), gsae_ray.compare(rows[rows["stopped_at"].isna()])
    pd.testing.assert_frame_equal(found.table, without.table)
    assert "one trial that the scheduler has stopped: left out" in found.notes
    gated, standard = (rows[rows["architecture"] == name] for name in ("gated", "standard"))
    assert l0_ratio(gated, standard) == l0_ratio(gated[gated["stopped_at"].isna()], standard)


def test_no_stopped_trial_is_drawn_or_ends_a_grid(rows: FrontierTable) -> None:
    axis, without = plot_frontier(rows).axes[0], plot_frontier(rows[rows["stopped_at"].isna()]).axes[0]
    drawn = [[line.get_xydata().tolist() for line in one.lines] for one in (axis, without)]  # type: ignore[union-attr]
    assert drawn[0] == drawn[1]
    assert at_edges(rows) == at_edges(rows[rows["stopped_at"].isna()])
    with pytest.raises(UserError, match="^plot: there is no SAE to draw"):
        plot_frontier(rows[rows["stopped_at"].notna()])


def test_a_frontier_shows_which_trials_were_stopped(rows: FrontierTable) -> None:
    assert repr(rows).count("100,000 tokens") == 1 and "stopped at" in repr(rows)
    stopped = rows[rows["stopped_at"].notna()]
    assert "100,000 tokens" in str(stopped._repr_html_()), "also where there is nothing to draw"
    assert "stopped at" not in repr(rows[rows["stopped_at"].isna()])


def test_a_trial_that_another_launch_trained_on_is_finished_in_storage_and_in_mlflow_after_a_resume(
    tmp_path: Path,
) -> None:
    uri, (trial, other) = new_store(tmp_path), expand(l1_coefficient=[1.0, 2.0])
    directory, beside = (begin(tmp_path / "swept/trials", one, steps=2) for one in (trial, other))
    finish(beside, other)
    directory.append(192, {"rung/l0": 25.0, "rung/loss_recovered": 0.6})
    folder = tmp_path / "swept/launches" / OLDER
    folder.mkdir(parents=True)
    identities = {one.name: one.identity for one in (trial, other)}
    LAUNCH.write(folder / "launch.json", {"sweep": {"name": "swept"}, "trials": identities})
    EVALUATED.write(folder / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    stopped = StoppedTrials(folder)
    stopped.create(trial.name, {"tokens": 192, "l0": 25.0, "quality": 0.6, "by": ["a"], "by_l0": 1, "by_quality": 1})

    def told(**where: Any) -> list[bool]:
        return gsae_ray.frontier("swept", with_stopped=True, **where)["stopped_at"].notna().tolist()

    def mirrored() -> list[bool]:
        mirror = Mirror(uri, "swept", OLDER, REQUEST, stop_of=stopped.get)
        mirror.open_launch("swept", {})
        mirror.sync([Trial(trial, directory), Trial(other, beside)])
        mirror.close("FINISHED")
        return told(tracking_uri=uri)

    assert told(storage=tmp_path) == mirrored() == [False, True]
    finish(directory, trial)  # by another launch
    assert told(storage=tmp_path) == [False, False] and told(tracking_uri=uri) == [False, True]
    assert mirrored() == [False, False]
