"""How a launch is stopped before its end: by SIGTERM, or by what keeps it from going on."""

from __future__ import annotations

import contextlib
import signal
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


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[StopRequest]:
    """Within the context SIGTERM, with which a cluster ends a job, stops the launch.

    While it is stopping or shutting down, SIGTERM interrupts that as Ctrl-C does.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # handlers are the main thread's
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.reason is not None or request.shutting_down:
            signal.default_int_handler(number, frame)
        request.set(StopAskedError("the launch was asked to stop; the same command with --resume goes on"))

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
