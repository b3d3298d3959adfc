"""MLflow beside a launch: opened while the rest starts, kept up to date by threads, and ended with the launch."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.background import MirrorThread, ReportThread
from gsae_ray.tracking.mirror import Mirror

OPENINGS, OPENING_PAUSE_S = 5, 5.0
"""How often it is tried to open MLflow, and the seconds between."""
CHECK_INTERVAL_S = 1.0
"""Seconds between two checks whether to go on waiting until MLflow is open."""

_LOG = logging.getLogger(__name__)


class Tracking:
    """Has a launch recorded in MLflow for the length of a `with` block.

    Entering starts to open MLflow in the background, since a new SQLite store takes as long to make as a language model
    to load, and begins to report progress. `start_mirroring` waits for the opening. Leaving sends what is left: then
    `last_error` tells whether everything has arrived. Where the block ends by an exception, the runs that are not
    finished become KILLED.
    """

    def __init__(
        self,
        open_mirror: Callable[[], Mirror],
        trials: Sequence[Trial],
        progress: Callable[[], dict[str, Any]] | None,
        allowed: Callable[[], bool],
    ) -> None:
        """Opens nothing yet.

        Args:
            open_mirror: connects, and opens the launch's run. It is tried several times, since the server was there
                when the sweep was checked.
            trials: those whose directories are mirrored.
            progress: returns how far the launch is; None: there is nothing to report.
            allowed: asked before everything that is written; not when another driver has taken over the launch.
        """
        self.trials = trials
        self.allowed = allowed
        self.last_error: str | None = None
        """Why MLflow is not up to date, where it is not."""
        self._give_up = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mlflow-open")
        self._open_mirror = open_mirror
        self._reports = None
        if progress is not None:
            self._reports = ReportThread(lambda said: self.mirror.report(said), progress, allowed=allowed)
        self._mirroring: MirrorThread | None = None

    @property
    def mirror(self) -> Mirror:
        """The mirror, which is waited for.

        Raises:
            Exception: what the last try to open it met.
        """
        return self._opening.result()

    def __enter__(self) -> Tracking:
        self._opening = self._pool.submit(self._open)
        if self._reports is not None:
            self._reports.start()
        return self

    def _open(self) -> Mirror:
        tries = 0
        while True:
            try:
                return self._open_mirror()
            except Exception:
                tries += 1
                if tries == OPENINGS or self._give_up.wait(OPENING_PAUSE_S):
                    raise

    def check(self) -> None:
        """Does nothing while the opening goes on, or has succeeded.

        Raises:
            Exception: what the last try met, where it has failed for good.
        """
        if self._opening.done():
            self._opening.result()

    def start_mirroring(self, check: Callable[[], None] = lambda: None) -> None:
        """Waits until MLflow is open; from now on it gets what is new every few seconds.

        Args:
            check: called every second while it is not open, which may be for minutes; its error ends the wait.

        Raises:
            Exception: what the last try to open it met, or `check` raised.
        """
        while not wait([self._opening], timeout=CHECK_INTERVAL_S).done:
            check()
        mirroring = MirrorThread(self.mirror, self.trials, allowed=self.allowed)
        mirroring.start()
        self._mirroring = mirroring

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._give_up.set()
            try:
                if self._reports is not None:
                    self._reports.finish()
            except BaseException:  # interrupted, maybe a second time: a server that hangs has this take long
                self._kill()
                raise
            if error is None:
                self._send_the_rest()
            else:
                self._kill()
        finally:
            self._pool.shutdown()

    def _send_the_rest(self) -> None:
        assert self._mirroring is not None
        self._mirroring.finish()
        self.last_error = self._mirroring.last_error
        _LOG.info("MLflow has everything" if self.last_error is None else "MLflow is not up to date")

    def _kill(self) -> None:
        """Marks the runs as killed; not where another driver has taken over: the launch may be that one's now."""
        with contextlib.suppress(Exception):  # the server may be what failed; storage has everything
            if self.allowed() if self._mirroring is None else self._mirroring.finish():
                self.mirror.close("KILLED")
