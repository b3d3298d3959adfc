"""The mirror's promise: whatever happens to it, MLflow ends up with what storage holds, once."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from mirrors import TRIALS, Server, append, pair
from trials import begin, finish

from gsae_ray.storage.trial_directory import Trial


def test_syncing_again_or_by_another_mirror_changes_nothing(server: Server, tmp_path: Path) -> None:
    pairs = [pair(tmp_path, 5, trial) for trial in TRIALS]
    (_, running), (done, done_directory), (_, failed) = pairs
    finish(done_directory, done)
    failed.fail("NaN")
    mirror = server.mirror()
    mirror.sync(pairs)
    before = server.snapshot()
    assert sorted(run["info"][0] for run in before.values()) == ["FAILED", "FINISHED", "RUNNING", "RUNNING"]
    mirror.sync(pairs)
    assert server.snapshot() == before
    server.mirror().sync(pairs)  # the first one's driver was killed
    after = server.snapshot()
    for run in (*before.values(), *after.values()):
        run["info"] = run["info"][:3]  # when a run ended: see the test below
    assert after == before
    append(running, 6)
    server.mirror().sync(pairs)
    assert len(server.runs()) == 3


def test_a_run_that_has_ended_keeps_its_end_when_a_launch_is_resumed(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 2)
    finish(directory, trial)
    server.mirror().sync([Trial(trial, directory)])
    ended = server.run().info.end_time
    time.sleep(0.01)
    server.mirror().sync([Trial(trial, directory)])
    assert server.run().info.end_time == ended


def test_every_metric_row_arrives_once_with_its_own_time(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path, 3)
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])
    append(directory, 4, 5)
    mirror.sync([Trial(trial, directory)])
    server.mirror().sync([Trial(trial, directory)])
    append(directory, 6)
    mirror.sync([Trial(trial, directory)])
    rows, _ = directory.rows()
    for name in ("train/loss", "train/l0"):
        expected = [(row["step"], row["timestamp"], row["metrics"][name]) for row in rows]
        assert server.history(server.run(), name) == expected
    assert len(rows) == 6


def test_more_metrics_than_fit_a_call_arrive_once(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    append(directory, *range(1, 161), **{f"train/{i}": float(i) for i in range(10)})
    server.mirror().sync([Trial(trial, directory)])
    run = server.run()
    assert len(run.data.metrics) == 12
    for name in run.data.metrics:
        assert [step for step, _, _ in server.history(run, name)] == [64 * step for step in range(1, 161)]


@pytest.mark.parametrize("again", ["the same mirror", "another mirror"])
def test_rows_cut_back_and_written_again_are_not_doubled(server: Server, tmp_path: Path, again: str) -> None:
    trial, directory = pair(tmp_path, 2)
    directory.checkpoint(128, {}, {})
    append(directory, 3, 4, 5)
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])
    successor = begin(tmp_path, trial)
    successor.newest_state()
    if again == "another mirror":
        mirror = server.mirror()
    mirror.sync([Trial(trial, successor)])
    for step in range(3, 8):
        time.sleep(0.002)  # rows have another timestamp than the first time
        append(successor, step)
        mirror.sync([Trial(trial, successor)])
    assert server.steps() == [64 * step for step in range(1, 8)]
    assert server.steps("train/l0") == server.steps()


def test_a_row_whose_loss_was_not_finite_is_not_doubled_when_it_is_written_again(
    server: Server, tmp_path: Path
) -> None:
    trial, directory = pair(tmp_path, 2)
    append(directory, 3, **{"train/loss": float("nan")})
    server.mirror().sync([Trial(trial, directory)])
    successor = begin(tmp_path, trial)
    successor.newest_state()
    time.sleep(0.002)
    append(successor, 1, 2, 3)
    server.mirror().sync([Trial(trial, successor)])
    assert server.steps("train/l0") == server.steps("train/loss") == [64, 128, 192]


@pytest.mark.parametrize("value", [1.0, 1.234567890123456], ids=["as long", "longer"])
def test_rows_cut_back_and_written_again_between_two_syncs_are_not_lost_or_doubled(
    server: Server, tmp_path: Path, value: float
) -> None:
    trial, directory = pair(tmp_path)
    append(directory, *range(1, 6), **{"train/tokens_per_s": 1.0})
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])
    successor = begin(tmp_path, trial)
    successor.newest_state()
    append(successor, *range(1, 9), **{"train/tokens_per_s": value})
    mirror.sync([Trial(trial, successor)])
    assert server.steps() == [64 * step for step in range(1, 9)]


def test_rows_that_are_shorter_when_written_again_are_not_lost(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    append(directory, *range(1, 6), **{"train/tokens_per_s": 1.234567890123456789})
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])
    size = (directory.path / "metrics-1.jsonl").stat().st_size
    successor = begin(tmp_path, trial)
    successor.newest_state()
    steps = itertools.count(1)
    while (successor.path / "metrics-2.jsonl").stat().st_size <= size:
        append(successor, last := next(steps), **{"train/tokens_per_s": 1.0})
    assert last > 5
    mirror.sync([Trial(trial, successor)])
    assert server.steps() == [64 * step for step in range(1, last + 1)]
