"""MLflow as the mirror of storage: what trial directories hold is sent there, again and again until it has arrived.

One experiment a sweep, one parent run a launch, the trials nested under it. Everything is found by tags before it is
made, and a run is asked what it has before metric rows are sent, so that mirroring twice changes nothing. After an
error it is asked again: what was sent may have arrived although no reply came.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import DamagedError
from gsae_ray.evaluation.metrics import schema_version
from gsae_ray.storage.evaluations import EVALUATION as EVALUATION_FILE
from gsae_ray.storage.evaluations import EvaluationRequest, schema_of
from gsae_ray.storage.metric_rows import START, Cursor, Row
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.artifacts import sequences_path
from gsae_ray.tracking.connection import connect
from gsae_ray.tracking.experiment import check_artifacts, open_experiment
from gsae_ray.tracking.params import trial_params
from gsae_ray.tracking.references import send_references
from gsae_ray.tracking.runs import find_run
from gsae_ray.tracking.tags import (
    CONTENT,
    EVALUATION,
    FAILURE,
    IDENTITY,
    JOB,
    KIND,
    LAUNCH,
    MACHINE,
    PROGRESS,
    SCHEMA,
    SWEEP,
    TRIAL,
    UPDATED,
)

_BATCH = 900  # metrics a call; MLflow takes 1000


@dataclasses.dataclass
class _Run:
    """A trial's run, and what the server has confirmed that it has."""

    id: str
    steps: dict[str, int]
    """The last step of each metric."""
    cursor: Cursor = START
    finished: bool = False
    """Whether it finished before, with evaluations of an older schema; those that are made again are sent whole."""


def _metrics(row: Row, steps: dict[str, int]) -> list[Metric]:
    """The metrics of a metric row that the run does not have yet, by its `steps`.

    Metric rows that were cut back and written again are not sent twice. Non-finite values are left out: MLflow stores
    infinities as huge numbers, which wreck its charts.
    """
    return [
        Metric(name, value, row["timestamp"], row["step"])
        for name, value in row["metrics"].items()
        if math.isfinite(value) and row["step"] > steps.get(name, -1)
    ]


def _batches(rows: list[Row], steps: dict[str, int]) -> Iterator[list[Metric]]:
    """Metrics of whole metric rows, as many as fit a call: a metric row arrives whole or not at all."""
    batch: list[Metric] = []
    for row in rows:
        metrics = _metrics(row, steps)
        if batch and len(batch) + len(metrics) > _BATCH:
            yield batch
            batch = []
        batch += metrics
    if batch:
        yield batch


class Mirror:
    """Brings an MLflow server up to date with the trial directories of one launch."""

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        launch_id: str,
        evaluation: EvaluationRequest,
    ) -> None:
        """Connects, and finds or makes the experiment.

        Args:
            tracking_uri: of MLflow.
            experiment: the name of the experiment.
            launch_id: of the launch that is mirrored.
            evaluation: what a trial needs to be finished.

        Raises:
            UserError: MLflow cannot be reached.
        """
        self.client = connect(tracking_uri)
        self.launch_id = launch_id
        self.evaluation = evaluation
        self.experiment_id = open_experiment(self.client, experiment).experiment_id
        self.damaged: dict[str, str] = {}
        """Trial -> the line about its damaged file. Its run is marked as failed; other trials go on."""
        self._runs: dict[str, _Run] = {}
        self._ended: set[str] = set()

    def _find(self, **tags: str) -> Run | None:
        """As `find_run`, tags by short names."""
        names = {"launch": LAUNCH, "trial": TRIAL, "kind": KIND}
        return find_run(self.client, self.experiment_id, {names[key]: value for key, value in tags.items()})

    def open_launch(self, sweep_name: str, params: dict[str, Any], job: str | None = None) -> str:
        """Finds or makes the parent run, and marks it as running. Returns its id.

        Args:
            sweep_name: of the launch's sweep.
            params: those of the launch; they are added where they are missing.
            job: the id of the cluster's job that runs the launch, if one does.
        """
        run = self._find(launch=self.launch_id, kind="launch")
        if run is None:
            tags = {LAUNCH: self.launch_id, KIND: "launch", SWEEP: sweep_name, EVALUATION: self.evaluation.fingerprint}
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=f"{sweep_name} {self.launch_id}")
        check_artifacts(self.client.tracking_uri, run.info.artifact_uri)
        self._log_params(run, params)
        if PROGRESS in run.data.tags:  # an earlier session's
            self.client.delete_tag(run.info.run_id, PROGRESS)
        if job is not None:
            self.client.set_tag(run.info.run_id, JOB, job)
        self.client.update_run(run.info.run_id, status="RUNNING")
        self.parent_id: str = run.info.run_id
        return self.parent_id

    def _log_params(self, run: Run, params: dict[str, Any]) -> None:
        """Adds the parameters that are missing: whoever made the run may have died before it had them all."""
        missing = [Param(key, str(value)) for key, value in params.items() if key not in run.data.params]
        if missing:
            self.client.log_batch(run.info.run_id, params=missing)

    def sync(self, trials: Sequence[Trial]) -> None:
        """Sends what is new in the directories of trials that have begun.

        Raises:
            Exception: the first error that a trial met, after all others had their turn; at once if the server does
                not answer.
        """
        first: Exception | None = None
        for trial in trials:
            if trial.name not in self._ended and trial.directory.path.exists():
                try:
                    self._sync_trial(trial)
                except Exception as error:
                    self._runs.pop(trial.name, None)  # the server is asked again what arrived
                    first = first or error
                    if isinstance(error, MlflowException) and error.get_http_status_code() >= 500:
                        break  # not this trial's fault: the others would wait as long
        if first is not None:
            raise first

    def _sync_trial(self, trial: Trial) -> None:
        """Sends what is new of one trial, and ends its run where it is done or has failed."""
        directory, (fingerprint, encoders) = trial.directory, self.evaluation
        # The status is read before the metric rows: a trial that is done by now has written them all.
        status = directory.status(self.evaluation)
        run = self._run(trial.spec)
        if trial.name in self._ended:
            return
        try:
            content = directory.check_done() if status.done else None
        except DamagedError as error:
            self.damaged[trial.name] = str(error)
            self.fail(trial.spec, str(error))
            return
        rows, cursor = directory.rows(run.cursor)
        evaluations = {asked: found for asked in encoders if (found := directory.evaluation(fingerprint, asked))}
        if status.done:
            made = sorted(evaluations.values(), key=lambda row: row["step"])  # `run.steps` only ever grow
            if run.finished:  # they were made again: of two values of a step MLflow shows the newer
                for row in reversed(made):
                    run.steps.update(dict.fromkeys(row["metrics"], row["step"] - 1))
            rows = [*rows, *made]
        for batch in _batches(rows, run.steps):
            self.client.log_batch(run.id, metrics=batch)
            run.steps.update((metric.key, metric.step) for metric in batch)
        run.cursor = cursor
        if content is not None:
            for asked, evaluation in evaluations.items():
                self.client.log_text(run.id, EVALUATION_FILE.encode(evaluation).decode(), sequences_path(asked))
            self.client.log_artifacts(run.id, str(directory.path / "sae"), "sae")
            self.client.set_tag(run.id, CONTENT, content)
            self.client.set_tag(run.id, SCHEMA, str(min(map(schema_of, evaluations.values()))))
            self._end(trial.spec, run.id, "FINISHED")
        elif status.failure is not None:
            self.fail(trial.spec, status.failure)

    def fail(self, trial: TrialSpec, reason: str) -> None:
        """Marks a trial's run as failed."""
        run_id = self._run(trial).id
        self.client.set_tag(run_id, FAILURE, reason[:5000])
        self._end(trial, run_id, "FAILED")

    def _end(self, trial: TrialSpec, run_id: str, status: str) -> None:
        self._find(launch=self.launch_id, trial=trial.name)  # removes a second run that the server made late
        self.client.set_terminated(run_id, status)
        self._ended.add(trial.name)

    def _run(self, trial: TrialSpec) -> _Run:
        """The trial's run, found or made."""
        if trial.name not in self._runs:
            run, finished = self._find(launch=self.launch_id, trial=trial.name), False
            if run is None:
                tags = {
                    LAUNCH: self.launch_id,
                    KIND: "trial",
                    TRIAL: trial.name,
                    IDENTITY: trial.identity,
                    EVALUATION: self.evaluation.fingerprint,
                    "mlflow.parentRunId": self.parent_id,
                }
                run = self.client.create_run(self.experiment_id, tags=tags, run_name=trial.name)
            else:
                finished = run.info.status == "FINISHED"  # said last, so everything is there
                if finished and int(run.data.tags.get(SCHEMA, 1)) >= schema_version():
                    self._ended.add(trial.name)
                elif not finished:
                    self.client.update_run(run.info.run_id, status="RUNNING")
                if FAILURE in run.data.tags:
                    self.client.delete_tag(run.info.run_id, FAILURE)
                if run.data.tags.get("mlflow.parentRunId") != self.parent_id:  # the other was deleted
                    self.client.set_tag(run.info.run_id, "mlflow.parentRunId", self.parent_id)
            check_artifacts(self.client.tracking_uri, run.info.artifact_uri)
            self._log_params(run, trial_params(trial))
            steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
            self._runs[trial.name] = _Run(run.info.run_id, steps, finished=finished)
        return self._runs[trial.name]

    def send_references(self, launch: Path) -> list[str]:
        """Sends the references of the launch, whose folder in storage it is; see `tracking.references`."""
        where = self.experiment_id, self.parent_id
        return send_references(self.client, *where, launch, self.evaluation.fingerprint)

    def log_launch(
        self, metrics: dict[str, float], artifacts: Sequence[Path] = (), machines: Sequence[str] = ()
    ) -> None:
        """Records metrics, files and kinds of machines in the parent run."""
        now = time.time_ns() // 1_000_000
        tags = [RunTag(UPDATED, str(now)), *(RunTag(f"{MACHINE}{i}", kind) for i, kind in enumerate(machines))]
        points = [Metric(name, value, now, 0) for name, value in metrics.items() if math.isfinite(value)]
        self.client.log_batch(self.parent_id, metrics=points, tags=tags)
        for path in artifacts:
            self.client.log_artifact(self.parent_id, str(path))

    def report(self, progress: dict[str, Any]) -> None:
        """Writes how far the launch is to its run."""
        self.client.set_tag(self.parent_id, PROGRESS, json.dumps(progress))

    def close(self, status: str) -> None:
        """Ends the parent run; where the launch was killed, the runs of its unfinished trials too."""
        if status != "FINISHED":
            for name, run in self._runs.items():
                if name not in self._ended and not run.finished:
                    self.client.set_terminated(run.id, status)
        self.client.set_terminated(self.parent_id, status)
