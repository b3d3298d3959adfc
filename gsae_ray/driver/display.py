"""Progress while a sweep runs, read from storage: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gsae_ray.activations.store import Wait
from gsae_ray.storage.trial_directory import START, EvaluationRequest, Trial

PLAIN_INTERVAL_S = 10.0
LIVE_INTERVAL_S = 0.5
SHOWN_TRIALS = 8
STATES = ("waiting", "running", "evaluating", "done", "failed")
"""Of a trial; `evaluating`: its SAE is finished, and waits for evaluations or is in one."""


@dataclasses.dataclass
class TrialProgress:
    """What a trial's directory says of it."""

    name: str
    total_tokens: int
    evaluations_left: int
    """Of its finished SAE."""
    state: str = "waiting"
    """Of `STATES`."""
    tokens: int = 0
    l0: float | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
    """Of a launch, in numbers."""

    trials: dict[str, int]
    """By state."""
    tokens: int
    """Of all trials."""
    tokens_per_s: float
    """Of the trials that run, at the mean pace of all; 0 where none does."""
    seconds_left: float | None
    """None: there is no telling yet."""
    uncounted_evaluations: int
    """Evaluations that `seconds_left` leaves out, since none has been made yet that would tell how long one takes."""
    waits: str | None
    """Which trials wait for activations, and for what (`describe_waits`)."""

    @property
    def ended(self) -> Progress:
        """When nothing runs any more: what was not finished waits for the next launch."""
        trials = {**self.trials, "running": 0, "evaluating": 0}
        trials["waiting"] += self.trials["running"] + self.trials["evaluating"]
        return Progress(trials, self.tokens, 0.0, None, 0, None)


@dataclasses.dataclass
class Pace:
    """How fast training and evaluating get on, each over the time in which it does."""

    tokens: int = 0
    trial_s: float = 0.0
    """Seconds in which trials trained on those, by their own clocks: two that run at once count twice."""
    evaluations: int = 0
    evaluating_s: float = 0.0
    """Seconds in which some SAE waited for its evaluation, or was in it."""

    def of(self, trials: Sequence[TrialProgress], waits: str | None = None) -> Progress:
        """How far trials are, and for how long they will take."""
        running = [trial for trial in trials if trial.state == "running"]
        speed = len(running) * self.tokens / self.trial_s if self.trial_s else 0.0
        tokens = sum(trial.total_tokens - trial.tokens for trial in trials if trial.state in ("waiting", "running"))
        evaluations = sum(trial.evaluations_left for trial in trials if trial.state != "failed")
        left: float | None = 0.0
        if tokens:
            left = tokens / speed if speed else None
        uncounted = 0
        if left is not None and self.evaluations:
            each = self.evaluating_s / self.evaluations
            last = sum(trial.evaluations_left for trial in running)  # after training: the others' go on beside it
            left = max(left, (evaluations - last) * each) + last * each
        elif left is not None and evaluations:
            uncounted, left = evaluations, left or None
        return Progress(
            trials={state: sum(trial.state == state for trial in trials) for state in STATES},
            tokens=sum(trial.tokens for trial in trials),
            tokens_per_s=speed,
            seconds_left=left,
            uncounted_evaluations=uncounted,
            waits=waits,
        )


class Observer:
    """Follows the trials of a launch through their directories."""

    def __init__(
        self,
        trials: Sequence[Trial],
        evaluation: EvaluationRequest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trials = trials
        self.evaluation = evaluation
        self.progress = [
            TrialProgress(trial.name, trial.spec.training.trained_tokens, len(evaluation.encoders)) for trial in trials
        ]
        self.pace = Pace()
        self._clock = clock
        self._looked: float | None = None
        self._cursors = [START] * len(trials)
        self._reached = [0] * len(trials)
        """Tokens of the furthest row of each; a trial that goes back writes some again."""
        self._attempts = [trial.directory.newest_attempt for trial in trials]
        self._lock = threading.Lock()

    def update(self) -> list[TrialProgress]:
        """Reads what is new; from any thread. What the first call finds says nothing of the pace of this launch."""
        with self._lock:
            now, pace = self._clock(), Pace() if self._looked is None else self.pace
            if any(trial.state == "evaluating" for trial in self.progress):
                pace.evaluating_s += now - (self._looked or now)
            for index in range(len(self.trials)):
                self._update(index, pace)
            self._looked = now
            return self.progress

    def _update(self, index: int, pace: Pace) -> None:
        progress, directory = self.progress[index], self.trials[index].directory
        if progress.state in ("done", "failed"):
            return
        rows, self._cursors[index] = directory.rows(self._cursors[index])
        for row in rows:
            progress.tokens, progress.l0 = row["step"], row["metrics"].get("train/l0")
            gained = row["step"] - self._reached[index]
            if gained > 0 and (rate := row["metrics"].get("train/tokens_per_s")):
                pace.tokens += gained
                pace.trial_s += gained / rate
            self._reached[index] = max(self._reached[index], row["step"])
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
        elif directory.newest_attempt > self._attempts[index]:
            progress.state = "running"


class Display:
    """Shows phases, then trials. `with Display(console) as display: display.phase("…"); display.follow(observer)`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._waits: dict[str, Wait] = {}

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def phase(self, text: str) -> None:
        """A line about what is going on before trials run."""
        # Where there is no terminal a line stays whole, however long.
        self.console.print(Text(text, style="dim"), highlight=False, soft_wrap=True)

    def follow(self, observer: Observer) -> None:
        """Shows the trials until `stop`."""
        observer.update()
        if self.console.is_terminal:
            self._live = Live(self._render(observer), console=self.console, transient=True, auto_refresh=False)
            self._live.start()
        self._thread = threading.Thread(target=self._loop, args=(observer,), name="display", daemon=True)
        self._thread.start()

    def show_waits(self, waits: Sequence[Wait]) -> None:
        """The trials that wait for activations, from now on."""
        self._waits = {wait.trial: wait for wait in waits}

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _loop(self, observer: Observer) -> None:
        interval = LIVE_INTERVAL_S if self._live else PLAIN_INTERVAL_S
        while not self._stop.wait(interval):
            try:
                observer.update()
            except (OSError, ValueError):
                continue  # storage hiccups; the next look will tell
            if self._live is not None:
                self._live.update(self._render(observer), refresh=True)
            else:
                self.console.print(describe_progress(self.progress(observer)), highlight=False, soft_wrap=True)

    def progress(self, observer: Observer) -> Progress:
        """What the observer saw last."""
        waits = describe_waits(list(self._waits.values())) if self._waits else None
        return observer.pace.of(observer.progress, waits)

    def _render(self, observer: Observer) -> Group:
        lines: list[RenderableType] = [Text(describe_progress(self.progress(observer)), style="bold")]
        shown = [trial for trial in observer.progress if trial.state in ("running", "evaluating")]
        for trial in shown[:SHOWN_TRIALS]:
            wait = self._waits.get(trial.name)
            doing = f"waits for block {wait.block}: {wait.reason}" if wait else ""
            row = Table.grid(padding=(0, 2))
            row.add_row(
                ProgressBar(total=trial.total_tokens, completed=trial.tokens, width=24),
                f"{trial.tokens:,}",
                f"L0 {trial.l0:.1f}" if trial.l0 is not None else "",
                doing if trial.state == "running" else trial.state,
            )
            lines += [Text(trial.name, overflow="fold"), row]  # names are long, and differ at their ends
        if len(shown) > SHOWN_TRIALS:
            lines.append(Text(f"… and {len(shown) - SHOWN_TRIALS} more"))
        return Group(*lines)


def describe_progress(progress: Progress) -> str:
    """`trials: 4 waiting, 2 running, 1 evaluating, 9 done, 0 failed | 85,000 tokens/s | 0:31 left`"""
    parts = ["trials: " + ", ".join(f"{progress.trials[state]} {state}" for state in STATES)]
    if progress.trials["running"]:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.trials["running"] or progress.trials["evaluating"]:
        evaluations = f"{progress.uncounted_evaluations} evaluation{'s' * (progress.uncounted_evaluations != 1)}"
        left = [] if progress.seconds_left is None else [clock(progress.seconds_left)]
        left += [evaluations] if progress.uncounted_evaluations else []
        parts.append(f"{' and '.join(left) or '?'} left")
    return " | ".join([*parts, progress.waits] if progress.waits else parts)


def describe_waits(waits: Sequence[Wait]) -> str:
    """`2 wait for activations (block 7: 512 of its 4,096 rows are made)`: of the one furthest behind."""
    first = min(waits, key=lambda wait: wait.block)
    return f"{len(waits)} wait{'s' if len(waits) == 1 else ''} for activations (block {first.block}: {first.reason})"


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
