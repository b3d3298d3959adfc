"""Threads that bring MLflow up to date beside a sweep, and outlive whatever its server does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from gsae_ray.errors import first_line
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.mirror import Mirror

_LOG = logging.getLogger(__name__)


class _PeriodicThread(threading.Thread):
    """Calls `round` every few seconds beside the sweep until `finish`, whatever errors it raises."""

    def __init__(self, name: str, interval_s: float, allowed: Callable[[], bool]) -> None:
        super().__init__(name=name, daemon=True)
        self.interval_s = interval_s
        self.allowed = allowed
        self.last_error: str | None = None
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(self.interval_s):
            self.attempt()

    def attempt(self) -> bool:
        """Does one round. Returns whether everything arrived."""
        try:
            if self.allowed():
                self.round()
                self.last_error = None
            else:
                self.last_error = "another driver has taken the sweep over"
        except Exception as error:  # whatever it is, it must not touch the sweep: storage has everything
            self.last_error = first_line(error)
            _LOG.debug("%s: writing to MLflow failed; trying again", self.name, exc_info=True)
        return self.last_error is None

    def round(self) -> None:
        raise NotImplementedError

    def finish(self) -> bool:
        """Stops the thread, then does a last round. Returns whether everything arrived.

        A server that hangs costs two timeouts of `quick_failure`: that of the call that the thread is in, and that of
        the first call of the last round.
        """
        self._stop_asked.set()
        self.join()
        return self.attempt()


class MirrorThread(_PeriodicThread):
    """Sends what is new in trial directories to MLflow every few seconds."""

    def __init__(
        self,
        mirror: Mirror,
        trials: Sequence[Trial],
        interval_s: float = 2,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepares the thread; `start` begins it.

        Args:
            mirror: what sends.
            trials: whose directories are sent.
            interval_s: seconds between two rounds.
            allowed: asked before each round; False when another driver mirrors these trials now.
        """
        super().__init__("mlflow-mirror", interval_s, allowed)
        self.mirror = mirror
        self.trials = trials

    def round(self) -> None:
        self.mirror.sync(self.trials)


class ReportThread(_PeriodicThread):
    """Tells MLflow every few seconds how far a launch is.

    Not within `MirrorThread`'s rounds: one that uploads SAEs may take minutes.
    """

    def __init__(
        self,
        report: Callable[[dict[str, Any]], None],
        progress: Callable[[], dict[str, Any]],
        interval_s: float = 2,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepares the thread; `start` begins it.

        Args:
            report: as `Mirror.report`; it may wait for a mirror that is still to be opened.
            progress: returns how far the launch is.
            interval_s: seconds between two reports.
            allowed: as for `MirrorThread`.
        """
        super().__init__("mlflow-report", interval_s, allowed)
        self.report = report
        self.progress = progress

    def round(self) -> None:
        self.report(self.progress())
