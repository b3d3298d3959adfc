"""How far a launch is, read from the directories of its trials."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gsae_ray.storage.metric_rows import START

if TYPE_CHECKING:  # they load PyTorch, which a command that asks how far a job is does without
    from gsae_ray.storage.evaluations import EvaluationRequest
    from gsae_ray.storage.trial_directory import Trial

STATES = ("waiting", "running", "evaluating", "done", "stopped", "failed")
"""States of a trial; `evaluating`: its SAE is finished, and some evaluation of it is not; `stopped`: by a scheduler."""
ENDED = ("done", "stopped", "failed")
"""Those that it does not leave."""


@dataclasses.dataclass
class TrialProgress:
    """How far one trial is."""

    name: str
    total_tokens: int
    evaluations_left: int
    """Evaluations that its finished SAE, and its snapshots, do not have yet."""
    state: str = "waiting"
    """One of `STATES`."""
    tokens: int = 0
    """Tokens that it has trained on."""
    l0: float | None = None
    """L0 in its newest metric row."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a launch is, in numbers; as JSON it is what a driver reports to MLflow."""

    trials: dict[str, int]
    """State -> number of trials in it; `stopped` only where there are some."""
    tokens: int
    """Tokens trained on, summed over all trials."""
    tokens_per_s: float
    """Speed of the running trials together, at the mean pace of this session; 0 where none runs."""
    seconds_left: float | None
    """None where nothing has been measured yet that it could be estimated from."""
    uncounted_evaluations: int
    """Evaluations that `seconds_left` leaves out, since none has been made yet that would tell how long one takes."""
    waits: str | None
    """Which trials wait for activations, and for what (`driver.display.describe_waits`)."""

    @property
    def ended(self) -> Progress:
        """The same when the driver has ended: what was not finished waits for the next session."""
        trials = {**self.trials, "running": 0, "evaluating": 0}
        trials["waiting"] += self.trials["running"] + self.trials["evaluating"]
        return Progress(trials, self.tokens, 0.0, None, 0, None)


@dataclasses.dataclass
class Pace:
    """How fast training and evaluation were in this session, each over the time in which there was some."""

    tokens: int = 0
    """Tokens trained on."""
    trial_s: float = 0.0
    """Seconds of training for those tokens, by the trials' own clocks: two trials at once count twice."""
    evaluations: int = 0
    evaluating_s: float = 0.0
    """Seconds in which at least one SAE waited for its evaluation, or was in it."""

    def progress(self, trials: Sequence[TrialProgress], waits: str | None = None) -> Progress:
        """Sums the trials up, and estimates the time that they still take at this pace."""
        running = [trial for trial in trials if trial.state == "running"]
        speed = len(running) * self.tokens / self.trial_s if self.trial_s else 0.0
        tokens = sum(trial.total_tokens - trial.tokens for trial in trials if trial.state in ("waiting", "running"))
        evaluations = sum(trial.evaluations_left for trial in trials if trial.state not in ENDED)
        left: float | None = 0.0
        if tokens:
            left = tokens / speed if speed else None
        uncounted = 0
        if left is not None and self.evaluations:
            each = self.evaluating_s / self.evaluations
            last = sum(trial.evaluations_left for trial in running)  # after training; others run beside it
            left = max(left, (evaluations - last) * each) + last * each
        elif left is not None and evaluations:
            uncounted, left = evaluations, left or None
        counts = Counter(trial.state for trial in trials)
        return Progress(
            trials={state: n for state in STATES if (n := counts[state]) or state != "stopped"},
            tokens=sum(trial.tokens for trial in trials),
            tokens_per_s=speed,
            seconds_left=left,
            uncounted_evaluations=uncounted,
            waits=waits,
        )


class ProgressReader:
    """Follows the trials of a launch by reading what is new in their directories."""

    def __init__(
        self,
        trials: Sequence[Trial],
        evaluation: EvaluationRequest,
        clock: Callable[[], float] = time.monotonic,
        is_stopped: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.trials = trials
        self.evaluation = evaluation
        self.progress = [
            TrialProgress(
                trial.name,
                trial.spec.training.trained_tokens,
                len(evaluation.encoders) + len(trial.spec.training.snapshots_at),
            )
            for trial in trials
        ]
        self.pace = Pace()
        self._clock = clock
        self._is_stopped = is_stopped
        self._updated_at: float | None = None
        self._cursors = [START] * len(trials)
        self._furthest = [0] * len(trials)
        """Tokens of each trial's furthest metric row: a trial that goes back writes some rows again."""
        self._attempts = [trial.directory.newest_attempt for trial in trials]
        self._lock = threading.Lock()

    def update(self) -> list[TrialProgress]:
        """Reads what is new; may be called from any thread.

        What the first call finds was there before this session, so it does not count for the pace.
        """
        with self._lock:
            now, pace = self._clock(), Pace() if self._updated_at is None else self.pace
            if any(trial.state == "evaluating" for trial in self.progress):
                pace.evaluating_s += now - (self._updated_at or now)
            for index in range(len(self.trials)):
                self._update(index, pace)
            self._updated_at = now
            return self.progress

    def _update(self, index: int, pace: Pace) -> None:
        progress, directory = self.progress[index], self.trials[index].directory
        if progress.state in ENDED:
            return
        rows, self._cursors[index] = directory.rows(self._cursors[index])
        for row in rows:
            progress.tokens, progress.l0 = row["step"], row["metrics"].get("train/l0")
            gained = row["step"] - self._furthest[index]
            if gained > 0 and (rate := row["metrics"].get("train/tokens_per_s")):
                pace.tokens += gained
                pace.trial_s += gained / rate
            self._furthest[index] = max(self._furthest[index], row["step"])
        status = directory.status(self.evaluation)
        if status.trained:
            pace.evaluations += progress.evaluations_left - len(status.missing)
            progress.evaluations_left, progress.tokens = len(status.missing), progress.total_tokens
        if status.done:
            progress.state = "done"
        elif status.failure is not None:
            progress.state = "failed"
        elif status.trained:
            progress.state = "evaluating"
        elif self._is_stopped(progress.name):
            progress.state = "stopped"
        elif directory.newest_attempt > self._attempts[index]:
            progress.state = "running"
