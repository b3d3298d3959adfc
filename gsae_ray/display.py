"""Progress while a sweep runs, read from storage: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gsae_ray.activations.store import Wait
from gsae_ray.training.directory import START, TrialDirectory
from gsae_ray.trial import TrialSpec

PLAIN_INTERVAL_S = 10.0
LIVE_INTERVAL_S = 0.5
SHOWN_TRIALS = 8
STATES = ("waiting", "running", "done", "failed")


@dataclasses.dataclass
class TrialProgress:
    """What a trial's directory says of it."""

    name: str
    total_tokens: int
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
    seconds_left: float | None
    """None: there is no telling yet."""


class Observer:
    """Follows the trials of a launch through their directories."""

    def __init__(
        self,
        trials: Sequence[tuple[TrialSpec, TrialDirectory]],
        fingerprint: str,
        encoders: Sequence[int | None],
    ) -> None:
        self.trials = trials
        self.fingerprint = fingerprint
        self.encoders = encoders
        self.progress = [TrialProgress(t.name, t.training.trained_tokens) for t, _ in trials]
        self._cursors = [START] * len(trials)
        self._attempts = [directory.newest_attempt for _, directory in trials]
        self._lock = threading.Lock()

    def update(self) -> list[TrialProgress]:
        """Reads what is new; from any thread."""
        with self._lock:
            return self._update()

    def _update(self) -> list[TrialProgress]:
        for index, (progress, (_, directory)) in enumerate(zip(self.progress, self.trials, strict=True)):
            if progress.state in ("done", "failed"):
                continue
            rows, self._cursors[index] = directory.rows(self._cursors[index])
            if rows:
                progress.tokens, progress.l0 = rows[-1]["step"], rows[-1]["metrics"].get("train/l0")
            if directory.done and not directory.missing(self.fingerprint, self.encoders):
                progress.state, progress.tokens = "done", progress.total_tokens
            elif directory.failure is not None:
                progress.state = "failed"
            elif directory.newest_attempt > self._attempts[index]:
                progress.state = "running"
        return self.progress


class Display:
    """Shows phases, then trials. `with Display(console) as display: display.phase("…"); display.follow(observer)`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._started: float | None = None
        self._base_tokens = 0
        self._waits: dict[str, Wait] = {}

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def phase(self, text: str) -> None:
        """A line about what is going on before trials run."""
        self.console.print(Text(text, style="dim"), highlight=False)

    def follow(self, observer: Observer) -> None:
        """Shows the trials until `stop`."""
        self._base_tokens = sum(trial.tokens for trial in observer.update())
        self._started = time.monotonic()  # last: from here on others are told of a pace
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
                self.console.print(self.summary(observer), highlight=False)

    def progress(self, observer: Observer) -> Progress:
        """What the observer saw last, and the pace since `follow`; before that nothing runs."""
        trials = observer.progress
        tokens = sum(t.tokens for t in trials)
        total = sum(t.total_tokens for t in trials if t.state != "failed")
        # At first, tokens after the checkpoints that trials go back to are counted too.
        seconds = math.inf if self._started is None else max(1e-9, time.monotonic() - self._started)
        speed = max(0, tokens - self._base_tokens) / seconds
        return Progress(
            trials={state: sum(t.state == state for t in trials) for state in STATES},
            tokens=tokens,
            tokens_per_s=speed,
            seconds_left=max(0, total - tokens) / speed if speed > 0 else None,
        )

    def summary(self, observer: Observer) -> str:
        """`trials: 4 waiting, 2 running, 10 done, 0 failed | 85,000 tokens/s | 0:31 left`"""
        waits = f" | {describe_waits(list(self._waits.values()))}" if self._waits else ""
        return f"{describe_progress(self.progress(observer))}{waits}"

    def _render(self, observer: Observer) -> Group:
        table = Table.grid(padding=(0, 2))
        running = [trial for trial in observer.progress if trial.state == "running"]
        for trial in running[:SHOWN_TRIALS]:
            bar = ProgressBar(total=trial.total_tokens, completed=trial.tokens, width=24)
            l0 = f"L0 {trial.l0:.1f}" if trial.l0 is not None else ""
            wait = self._waits.get(trial.name)
            waits = f"waits for block {wait.block}: {wait.reason}" if wait else ""
            table.add_row(trial.name, bar, f"{trial.tokens:,}", l0, waits)
        if len(running) > SHOWN_TRIALS:
            table.add_row(f"… and {len(running) - SHOWN_TRIALS} more")
        return Group(Text(self.summary(observer), style="bold"), table)


def describe_progress(progress: Progress) -> str:
    """`trials: 4 waiting, 2 running, 10 done, 0 failed | 85,000 tokens/s | 0:31 left`"""
    counts = ", ".join(f"{progress.trials[state]} {state}" for state in STATES)
    left = "?" if progress.seconds_left is None else clock(progress.seconds_left)
    return f"trials: {counts} | {progress.tokens_per_s:,.0f} tokens/s | {left} left"


def describe_waits(waits: Sequence[Wait]) -> str:
    """`2 wait for activations (block 7: it is in production)`: the reason of the one that is furthest behind."""
    first = min(waits, key=lambda wait: wait.block)
    return f"{len(waits)} wait{'s' if len(waits) == 1 else ''} for activations (block {first.block}: {first.reason})"


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
