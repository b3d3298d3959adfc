"""How far a launch is: what its numbers mean, read from the directories of its trials."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from faults import wait_until
from mlflow.tracking import MlflowClient
from rich.console import Console
from trials import FINGERPRINT, evaluation, expand, random_sae

from gsae_ray.activations.store import Wait
from gsae_ray.config.trial import TrialSpec
from gsae_ray.driver.display import Display, describe_progress
from gsae_ray.jobs.remote_launch import RemoteLaunch
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.storage.progress import Pace, Progress, ProgressReader, TrialProgress
from gsae_ray.storage.trial_directory import Trial, TrialDirectory
from gsae_ray.tracking.tags import PROGRESS

TOTAL = 1024
TRIALS = expand(l1_coefficient=[1.0, 2.0, 4.0, 8.0])


class Launch:
    """Trials whose time is told by the test."""

    def __init__(
        self, root: Path, trials: list[TrialSpec] = TRIALS, encoders: tuple[int | None, ...] = (None,)
    ) -> None:
        self.now = 100.0
        self.directories = [TrialDirectory(root / trial.directory_name) for trial in trials]
        self.trials = trials
        self.encoders = encoders
        pairs = map(Trial, trials, self.directories)
        request = EvaluationRequest(FINGERPRINT, encoders)
        self.reader = ProgressReader(list(pairs), request, clock=lambda: self.now)
        self.reader.update()

    def begin(self, *indices: int) -> None:
        for index in indices:
            self.directories[index].begin_attempt(self.trials[index])

    def train(self, index: int, to: int, rate: float) -> None:
        """To so many tokens, at so many a second."""
        self.directories[index].append(to, {"train/l0": 5.0, "train/tokens_per_s": rate})

    def finish(self, *indices: int) -> None:
        for index in indices:
            self.directories[index].finish(random_sae(self.trials[index]))

    def evaluate(self, *indices: int) -> None:
        for index, pursuit_l0 in ((index, l0) for index in indices for l0 in self.encoders):
            self.directories[index].save_evaluation(FINGERPRINT, TOTAL, evaluation(), pursuit_l0)

    def look(self, seconds: float = 0.0) -> Progress:
        """So much later."""
        self.now += seconds
        self.reader.update()
        return Display(Console(quiet=True)).progress(self.reader)


def test_evaluating_is_a_state_of_its_own(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    assert launch.look().trials == {"waiting": 4, "running": 0, "evaluating": 0, "done": 0, "failed": 0}
    launch.begin(0, 1, 2)
    launch.finish(1, 2)
    launch.evaluate(2)
    progress = launch.look()
    assert progress.trials == {"waiting": 1, "running": 1, "evaluating": 1, "done": 1, "failed": 0}
    assert "1 running, 1 evaluating, 1 done" in describe_progress(progress)


def test_time_left_counts_evaluations(tmp_path: Path) -> None:
    """Four SAEs are trained at once; each evaluation takes 90 s."""
    launch = Launch(tmp_path)
    launch.begin(0, 1, 2, 3)
    for index in range(4):
        launch.train(index, TOTAL // 2, rate=16)
    progress = launch.look(32)
    assert (progress.seconds_left, progress.uncounted_evaluations) == (32, 4)
    assert describe_progress(progress).endswith("| 64 tokens/s | 0:32 and 4 evaluations left")
    launch.finish(0, 1, 2, 3)
    progress = launch.look(32)
    assert (progress.seconds_left, progress.uncounted_evaluations) == (None, 4)
    assert describe_progress(progress).endswith("0 failed | 4 evaluations left"), "and no tokens/s: nothing trains"
    for done in range(3):
        launch.look(60)
        launch.evaluate(done)
        progress = launch.look(30)
        assert (progress.seconds_left, progress.uncounted_evaluations) == ((3 - done) * 90, 0)
    assert describe_progress(progress).endswith("| 1:30 left")
    launch.evaluate(3)
    assert launch.look(90).seconds_left == 0


def test_evaluations_of_trained_saes_go_on_beside_training_and_those_of_the_last_come_after_it(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    launch.begin(0, 1)
    launch.train(0, TOTAL, rate=64)
    launch.finish(0)
    launch.look()
    launch.evaluate(0)
    launch.look(10)  # what an evaluation takes
    launch.train(1, TOTAL // 2, rate=64)
    left = (TOTAL // 2 + 2 * TOTAL) / 64
    assert launch.look().seconds_left == left + 10
    launch.reader.pace = dataclasses.replace(launch.reader.pace, evaluating_s=100.0)
    assert launch.look().seconds_left == 3 * 100, "evaluations are what takes longest"


def test_pursuit_counts_as_evaluations_too(tmp_path: Path) -> None:
    launch = Launch(tmp_path, encoders=(None, 4, 16))
    launch.begin(0)
    launch.finish(0)
    launch.look()
    launch.evaluate(0)
    launch.begin(1)
    launch.finish(1)
    assert launch.look(30).seconds_left is None, "two trials are still to be trained, at no known pace"
    launch.directories[2].begin_attempt(TRIALS[2])
    launch.directories[3].begin_attempt(TRIALS[3])
    launch.finish(2, 3)
    assert launch.look().seconds_left == 9 * 10


def test_tokens_per_second_are_those_of_a_time_in_which_something_trains(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    launch.begin(0, 1)
    assert launch.look(120).tokens_per_s == 0, "nothing before the first block is there"
    launch.train(0, TOTAL // 2, rate=32)
    launch.train(1, TOTAL // 4, rate=16)
    assert launch.look(16).tokens_per_s == pytest.approx(2 * (TOTAL * 3 / 4) / 32)
    launch.finish(0, 1)
    assert launch.look(600).tokens_per_s == 0
    launch.begin(2, 3)
    assert launch.look(600).tokens_per_s == pytest.approx(48), "the pace of before, not slower for the pause"


def test_what_was_trained_before_this_launch_says_nothing_of_its_pace(tmp_path: Path) -> None:
    first = Launch(tmp_path)
    first.begin(0)
    first.train(0, TOTAL // 2, rate=1)
    resumed = Launch(tmp_path)
    resumed.begin(0)
    resumed.directories[0].newest_state()  # begins the attempt's rows, as a trial does; no checkpoint: from 0
    assert resumed.look(5).seconds_left is None
    resumed.train(0, TOTAL * 3 // 4, rate=64)
    progress = resumed.look(5)
    assert (progress.tokens, progress.tokens_per_s) == (TOTAL * 3 // 4, 64)


def test_a_trial_that_failed_takes_no_time(tmp_path: Path) -> None:
    launch = Launch(tmp_path, TRIALS[:2])
    launch.begin(0, 1)
    launch.train(0, TOTAL // 2, rate=64)
    launch.train(1, TOTAL // 2, rate=64)
    launch.look(8)
    launch.directories[1].fail("NaN")
    progress = launch.look()
    assert (progress.seconds_left, progress.uncounted_evaluations) == (TOTAL // 2 / 64, 1)


WAIT = Wait(TRIALS[0].name, 0, "12,000 of its 50,000 rows are made")


def test_what_trials_wait_for_is_shown_in_rows(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    launch.begin(0)
    console = Console(file=io.StringIO(), width=80)
    display = Display(console)
    display.show_waits([WAIT])
    launch.look()
    progress = display.progress(launch.reader)
    assert progress.waits == "1 waits for activations (block 0: 12,000 of its 50,000 rows are made)"
    assert describe_progress(progress).endswith(progress.waits)
    console.print(display._render(launch.reader))
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "waits for block 0: 12,000 of its 50,000 rows are made" in shown
    display.show_waits([])
    assert display.progress(launch.reader).waits is None


def test_status_reads_what_the_driver_tells(tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")

    def reported(values: dict[str, Any]) -> Progress | None:
        run = client.create_run("0", tags={PROGRESS: json.dumps(values)})
        return RemoteLaunch(client, run).progress

    progress = dataclasses.replace(Launch(tmp_path).look(), waits="1 waits", seconds_left=3.5)
    told = {**dataclasses.asdict(progress), "forward_ratio": 1.0}
    assert reported(told) == progress
    assert reported({}) is None
    assert reported({name: value for name, value in told.items() if name != "waits"}) is None, "of another version"


@pytest.mark.parametrize("width", [80, 120])
def test_the_display_tells_trials_apart(tmp_path: Path, width: int) -> None:
    """Names are long, and differ at their ends."""
    trials = expand(lr=[1e-3, 3e-4], seeds=[0, 1])
    launch = Launch(tmp_path, trials)
    launch.begin(*range(4))
    launch.look()
    console = Console(file=io.StringIO(), width=width)
    console.print(Display(console)._render(launch.reader))
    text = console.file.getvalue().replace("\n", "")  # type: ignore[attr-defined]
    assert all(trial.name in text for trial in trials)


def test_when_a_launch_has_ended_nothing_of_it_runs() -> None:
    trials = [TrialProgress("t", 100, 1, state) for state in ("running", "evaluating", "waiting", "done", "failed")]
    ended = Pace(tokens=50, trial_s=1.0).progress(trials, "1 waits").ended
    assert ended.trials == {"waiting": 3, "running": 0, "evaluating": 0, "done": 1, "failed": 1}
    assert describe_progress(ended) == "trials: 3 waiting, 0 running, 0 evaluating, 1 done, 1 failed"


def test_a_line_stays_whole_where_there_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsae_ray.driver.display.PLAIN_INTERVAL_S", 0.01)
    out = io.StringIO()
    display = Display(Console(file=out, width=80))
    notice = "a notice of more than eighty characters" * 5
    display.phase(notice)
    with display.following(Launch(tmp_path).reader):
        wait_until(lambda: out.getvalue().count("trials: ") > 1)
    first, *progress = out.getvalue().splitlines()
    assert first == notice and len(set(progress)) == 1, progress
