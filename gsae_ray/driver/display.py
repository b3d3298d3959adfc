"""Progress while a sweep runs, read from storage: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gsae_ray.activations.store import Wait
from gsae_ray.storage.progress import STATES, Progress, ProgressReader

PLAIN_INTERVAL_S = 10.0
LIVE_INTERVAL_S = 0.5
SHOWN_TRIALS = 8


class Display:
    """Shows a launch: `display = Display(console); display.phase("…"); with display.following(reader): …`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._waits: dict[str, Wait] = {}

    def phase(self, text: str) -> None:
        """Prints a line about what is going on."""
        # Where there is no terminal a line stays whole, however long.
        self.console.print(Text(text, style="dim"), highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def following(self, reader: ProgressReader) -> Iterator[None]:
        """Shows the trials for the length of the context."""
        reader.update()
        with contextlib.ExitStack() as stack:
            live = None
            if self.console.is_terminal:
                live = Live(self._render(reader), console=self.console, transient=True, auto_refresh=False)
                stack.enter_context(live)
            ended = threading.Event()
            thread = threading.Thread(target=self._loop, args=(reader, live, ended), name="display", daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(ended.set)
            yield

    def show_waits(self, waits: Sequence[Wait]) -> None:
        """Takes note of the trials that wait for activations from now on."""
        self._waits = {wait.trial: wait for wait in waits}

    def _loop(self, reader: ProgressReader, live: Live | None, ended: threading.Event) -> None:
        interval = LIVE_INTERVAL_S if live is not None else PLAIN_INTERVAL_S
        while not ended.wait(interval):
            try:
                reader.update()
            except (OSError, ValueError):
                continue  # of storage; it may pass until the next time
            if live is not None:
                live.update(self._render(reader), refresh=True)
            else:
                self.console.print(describe_progress(self.progress(reader)), highlight=False, soft_wrap=True)

    def progress(self, reader: ProgressReader) -> Progress:
        """Returns how far the launch is, by what the reader saw last."""
        waits = describe_waits(list(self._waits.values())) if self._waits else None
        return reader.pace.progress(reader.progress, waits)

    def _render(self, reader: ProgressReader) -> Group:
        lines: list[RenderableType] = [Text(describe_progress(self.progress(reader)), style="bold")]
        shown = [trial for trial in reader.progress if trial.state in ("running", "evaluating")]
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
    """Returns `trials: 4 waiting, 2 running, 1 evaluating, 9 done, 0 failed | 85,000 tokens/s | 0:31 left`."""
    parts = ["trials: " + describe_states(progress.trials)]
    if progress.trials["running"]:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.trials["running"] or progress.trials["evaluating"]:
        evaluations = f"{progress.uncounted_evaluations} evaluation{'s' * (progress.uncounted_evaluations != 1)}"
        left = [] if progress.seconds_left is None else [clock(progress.seconds_left)]
        left += [evaluations] if progress.uncounted_evaluations else []
        parts.append(f"{' and '.join(left) or '?'} left")
    return " | ".join([*parts, progress.waits] if progress.waits else parts)


def describe_states(trials: Mapping[str, int]) -> str:
    """Returns `4 waiting, 2 running, 1 evaluating, 9 done, 0 failed`; those that were stopped where there are any."""
    shown = [state for state in STATES if state != "stopped" or trials.get(state)]
    return ", ".join(f"{trials[state]} {state}" for state in shown)


def describe_waits(waits: Sequence[Wait]) -> str:
    """Returns `2 wait for activations (block 7: 512 of its 4,096 rows are made)`, for the trial furthest behind."""
    first = min(waits, key=lambda wait: wait.block)
    return f"{len(waits)} wait{'s' if len(waits) == 1 else ''} for activations (block {first.block}: {first.reason})"


def clock(seconds: float) -> str:
    """Returns a duration as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
