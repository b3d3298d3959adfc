"""Has finished SAEs evaluated while others train, so that a trial's resources are free as soon as its SAE is saved."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from gsae_ray.data.probe_set import ProbeSets
from gsae_ray.errors import NumericError, ProductionError, StorageFullError, reason
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.task import Evaluate, Probe
from gsae_ray.files import disk_space_needed
from gsae_ray.saes.folder import CONFIG_FILE, WEIGHTS_FILE
from gsae_ray.storage.evaluations import EvaluationRequest, Snapshot, Subject
from gsae_ray.storage.trial_directory import Trial

Submit = Callable[[Any], "Future[Evaluation]"]
"""Has a task, an `Evaluate` or a `Probe`, run on a producer, in time."""

STORAGE_TIMEOUT_S = 120.0
"""Storage that cannot be read for longer ends the evaluations."""


class _SAE(NamedTuple):
    """A finished SAE of a trial, or a snapshot, and what of it is to be evaluated."""

    trial: Trial
    folder: Path
    subjects: tuple[Subject, ...]

    def tasks(self, probes: ProbeSets | None) -> list[tuple[Subject, Evaluate | Probe]]:
        """What a producer is asked for: its weights are read once."""
        cfg = (self.folder / CONFIG_FILE).read_text("utf-8")
        weights = (self.folder / WEIGHTS_FILE).read_bytes()
        sae = self.trial.spec.site, cfg, weights

        def task(subject: Subject) -> Evaluate | Probe:
            if isinstance(subject, str):
                assert probes is not None and subject == probes.fingerprint
                return Probe(*sae, probes)
            return Evaluate(*sae, None if isinstance(subject, Snapshot) else subject)

        return [(subject, task(subject)) for subject in self.subjects]


def _saes_of(trial: Trial, request: EvaluationRequest) -> list[_SAE]:
    """The SAEs of a trial that lack evaluations.

    Raises:
        DamagedError: one is not as it was saved.
    """
    directory = trial.directory
    directory.check_done()
    missing = directory.status(request).missing
    of_finished = tuple(subject for subject in missing if not isinstance(subject, Snapshot))
    saes = [_SAE(trial, directory.path / "sae", of_finished)] if of_finished else []
    for snapshot in (subject for subject in missing if isinstance(subject, Snapshot)):
        directory.snapshots.check(snapshot.tokens)
        saes.append(_SAE(trial, directory.snapshots.path(snapshot.tokens), (snapshot,)))
    return saes


class EvaluationQueue(threading.Thread):
    """Watches trial directories, in a thread: each SAE that is finished gets the evaluations that it lacks.

    So do the snapshots of a trial, once that is done.

    A trial fails for good where the language model's numbers are not finite on the held-out text.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        evaluation: EvaluationRequest,
        submit: Submit,
        probes: ProbeSets | None = None,
        at_a_time: int = 2,
        interval_s: float = 0.3,
    ) -> None:
        """Prepares the thread; `start` begins it.

        Args:
            trials: those whose SAEs are to be evaluated.
            evaluation: what every SAE is to get.
            submit: has a producer evaluate an SAE.
            probes: what is probed, where `evaluation` asks for that.
            at_a_time: SAEs whose weights are in memory for their evaluations.
            interval_s: seconds between two readings of the directories.
        """
        super().__init__(name="evaluations", daemon=True)
        self.evaluation = evaluation
        self.submit = submit
        self.probes = probes
        self.at_a_time = at_a_time
        self.interval_s = interval_s
        self._waiting = list(trials)
        self._unasked: list[_SAE] = []
        """Of a trial that is done, those that are to be evaluated as soon as there is room."""
        self._running: list[tuple[_SAE, Subject, Future[Evaluation]]] = []
        self._error: Exception | None = None
        self._training_over = threading.Event()
        self._stop_asked = False

    def run(self) -> None:
        since: float | None = None
        while not self._stop_asked:
            last = self._training_over.is_set()  # read before the directories: what is DONE by now is then seen
            try:
                self._ask()
                self._save()
                left = self._running or self._unasked or any(trial.directory.done for trial in self._waiting)
                if last and not left:
                    return
            except OSError as error:  # it may pass; what stays ends the evaluations
                since = since or time.monotonic()
                if time.monotonic() - since > STORAGE_TIMEOUT_S:
                    self._error = self._error or error
                    return
            else:
                since = None
            time.sleep(self.interval_s)

    def _ask(self) -> None:
        """Asks for the evaluations of SAEs that are finished by now, as far as there is room."""
        while len({sae.folder for sae, *_ in self._running}) < self.at_a_time:
            if self._unasked:
                sae = self._unasked.pop(0)
                with self._kept_for_finish():
                    requests = [(sae, subject, self.submit(task)) for subject, task in sae.tasks(self.probes)]
                    self._running += requests
                continue
            trial = next((trial for trial in self._waiting if trial.directory.done), None)
            if trial is None:
                return
            self._waiting.remove(trial)
            with self._kept_for_finish():
                self._unasked = _saes_of(trial, self.evaluation)

    def _save(self) -> None:
        """Saves the evaluations that have been made."""
        for running in [r for r in self._running if r[2].done()]:
            (trial, *_), subject, request = running
            directory = trial.directory
            self._running.remove(running)
            with self._kept_for_finish(), disk_space_needed(directory.path):
                try:
                    evaluation = request.result()
                except NumericError as error:
                    directory.fail_evaluation(reason(error))
                else:
                    tokens = trial.spec.training.trained_tokens
                    directory.save_evaluation(self.evaluation.fingerprint, tokens, evaluation, subject)

    @contextlib.contextmanager
    def _kept_for_finish(self) -> Iterator[None]:
        """Keeps an error of one SAE for `finish`, which raises it; the other SAEs get their evaluations."""
        try:
            yield
        except Exception as error:
            self._error = self._error or error

    def stop(self) -> None:
        """Ends the thread without waiting for anything."""
        self._stop_asked = True

    def finish(self, check: Callable[[], None] = lambda: None) -> None:
        """Waits until every finished SAE is evaluated; no further one comes.

        Args:
            check: called now and then; its error ends the wait.

        Raises:
            ProductionError: a producer could not evaluate some SAE.
            StorageFullError: storage was full.
        """
        self._training_over.set()
        while self.is_alive():
            check()
            self.join(self.interval_s)
        if self._error is not None:
            if isinstance(self._error, StorageFullError):
                raise self._error
            raise ProductionError(reason(self._error)) from self._error
