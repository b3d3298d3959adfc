"""How a launch is stopped before its end: by SIGTERM, by a notebook's interrupt, or by what keeps it from going on."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from gsae_ray.errors import StopAskedError, SweepStoppedError


class StopRequest:
    """Whether a launch has to stop, and why; the first reason counts. May be used from any thread."""

    def __init__(self) -> None:
        self.reason: SweepStoppedError | None = None
        self.shutting_down = False
        """Whether the launch's work has ended, by itself or by an error: nothing checks for a reason any more."""

    def set(self, why: SweepStoppedError) -> None:
        """Has the launch stop: trials that run save a checkpoint."""
        self.reason = self.reason or why

    def check(self) -> None:
        """Ends the caller's work where the launch has to stop.

        Raises:
            SweepStoppedError: it has to.
        """
        if self.reason is not None:
            raise self.reason


def is_interactive() -> bool:
    """Whether somebody types into this Python: a notebook, IPython, or Python's own prompt."""
    return hasattr(sys, "ps1")


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[StopRequest]:
    """Within the context SIGTERM, with which a cluster ends a job, stops the launch.

    So does SIGINT, with which a notebook interrupts a cell, where Python is interactive: trials save a checkpoint
    first. While the launch is stopping or shutting down, either interrupts that as Ctrl-C does.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # handlers are the main thread's
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.reason is not None or request.shutting_down:
            signal.default_int_handler(number, frame)
        request.set(StopAskedError("the launch was asked to stop; the same command with --resume goes on"))

    signals = [signal.SIGTERM, *([signal.SIGINT] if is_interactive() else [])]
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
