"""Has finished SAEs evaluated while others train: a trial's slot is free as soon as its SAE is saved."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from gsae_ray.errors import ProductionError, reason
from gsae_ray.saes.io import CONFIG_FILE, WEIGHTS_FILE
from gsae_ray.sweep import TrialSpec
from gsae_ray.training.directory import TrialDirectory

Evaluate = Callable[[str, str, bytes], "Future[dict[str, float]]"]
"""(site, cfg.json, weights as saved) -> the metrics, in time."""


class EvaluationQueue(threading.Thread):
    """Watches trial directories: what is DONE and has no evaluation of this fingerprint gets one."""

    def __init__(
        self,
        trials: Sequence[tuple[TrialSpec, TrialDirectory]],
        fingerprint: str,
        evaluate: Evaluate,
        interval_s: float = 0.3,
    ) -> None:
        super().__init__(name="evaluations", daemon=True)
        self.fingerprint = fingerprint
        self.evaluate = evaluate
        self.interval_s = interval_s
        self._waiting = list(trials)
        self._running: list[tuple[TrialSpec, TrialDirectory, Future[dict[str, float]]]] = []
        self._error: Exception | None = None
        self._training_over = threading.Event()
        self._stop_asked = False

    def run(self) -> None:
        while not self._stop_asked:
            last = self._training_over.is_set()  # before the look: what is DONE now is then seen
            self._look()
            if last and not self._running:
                return
            time.sleep(self.interval_s)

    def _look(self) -> None:
        for item in list(self._waiting):
            trial, directory = item
            if directory.evaluation(self.fingerprint) is not None:
                self._waiting.remove(item)
            elif directory.done:
                self._waiting.remove(item)
                with self._kept_for_finish():
                    folder = directory.path / "sae"
                    cfg, weights = (folder / CONFIG_FILE).read_text("utf-8"), (folder / WEIGHTS_FILE).read_bytes()
                    self._running.append((trial, directory, self.evaluate(trial.site, cfg, weights)))
        for running in [r for r in self._running if r[2].done()]:
            trial, directory, request = running
            self._running.remove(running)
            with self._kept_for_finish():
                metrics = {f"eval/{name}": value for name, value in request.result().items()}
                directory.save_evaluation(self.fingerprint, trial.training.trained_tokens, metrics)

    @contextlib.contextmanager
    def _kept_for_finish(self) -> Iterator[None]:
        """What goes wrong with one SAE is told by `finish`; the other SAEs get their evaluations."""
        try:
            yield
        except Exception as error:
            self._error = self._error or error

    def stop(self) -> None:
        """Ends the thread without waiting for anything."""
        self._stop_asked = True

    def finish(self) -> None:
        """Waits until everything that is DONE is evaluated.

        Raises:
            ProductionError: a producer could not evaluate some SAE.
        """
        self._training_over.set()
        self.join()
        if self._error is not None:
            raise ProductionError(reason(self._error)) from self._error
