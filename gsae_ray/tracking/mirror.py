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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.entities import LoggedModelInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NOTE

from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import DamagedError, first_line
from gsae_ray.evaluation.metrics import schema_version
from gsae_ray.storage.evaluations import EVALUATION as EVALUATION_FILE
from gsae_ray.storage.evaluations import EvaluationRequest, Snapshot, schema_of
from gsae_ray.storage.metric_rows import START, Cursor, Row
from gsae_ray.storage.stopped import Stop
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.artifacts import sequences_path, snapshot_path
from gsae_ray.tracking.connection import connect, is_away
from gsae_ray.tracking.credentials import HTTP, redacted_in
from gsae_ray.tracking.experiment import check_artifacts, open_experiment
from gsae_ray.tracking.features import send_features
from gsae_ray.tracking.inputs import Inputs, dataset_inputs, model_inputs
from gsae_ray.tracking.note import compose, merged, room_beside
from gsae_ray.tracking.pages import trials_page
from gsae_ray.tracking.params import trial_params
from gsae_ray.tracking.ratings import send_ratings
from gsae_ray.tracking.references import send_references
from gsae_ray.tracking.registry import Registry
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
    SNAPSHOT,
    STOPPED,
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
        run_names: Mapping[str, str] | None = None,
        inputs: Inputs | None = None,
        stop_of: Callable[[str], Stop | None] = lambda _: None,
    ) -> None:
        """Connects, and finds or makes the experiment.

        Args:
            tracking_uri: of MLflow.
            experiment: the name of the experiment.
            launch_id: of the launch that is mirrored.
            evaluation: what a trial needs to be finished.
            run_names: trial -> name of its run; default: the trial's.
            inputs: what every run was made from.
            stop_of: why the launch's scheduler has stopped a trial, by its name; None where it has not.

        Raises:
            UserError: MLflow cannot be reached.
        """
        self.client = connect(tracking_uri)
        self.launch_id = launch_id
        self.evaluation = evaluation
        self.stop_of = stop_of
        self._run_names = run_names or {}
        self._inputs = inputs
        self._models: list[LoggedModelInput] | None = None
        self.experiment = experiment
        self.experiment_id: str = open_experiment(self.client, experiment).experiment_id
        self.notices: list[str] = []
        """What this server does not take, and the runs are without."""
        self.damaged: dict[str, str] = {}
        """Trial -> the line about its damaged file. Its run is marked as failed; other trials go on."""
        self._runs: dict[str, _Run] = {}
        self._ended: set[str] = set()

    @property
    def page(self) -> str | None:
        """The address of the launch's trials in MLflow's UI; None where no server has them."""
        uri: str = self.client.tracking_uri
        return trials_page(uri, self.experiment_id, self.launch_id) if urlsplit(uri).scheme in HTTP else None

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
        self._log_inputs(run)
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

    def _log_inputs(self, run: Run) -> None:
        """Says what a run was made from, unless it does; where the server has no such thing, it is said once."""
        if self._inputs is None or (run.inputs is not None and run.inputs.dataset_inputs):
            return
        try:
            if self._models is None:
                self._models = model_inputs(self.client, self.experiment_id, self._inputs.model)
            self.client.log_inputs(run.info.run_id, dataset_inputs(self._inputs), self._models)
        except MlflowException as error:
            if is_away(error):
                raise
            self._inputs = None
            self.notices.append(f"MLflow does not show data set and model of the runs ({self._said(error)})")

    def _said(self, error: MlflowException) -> str:
        """What the server said, in one line without secrets."""
        return redacted_in(first_line(error), self.client.tracking_uri)

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
        directory = trial.directory
        # The status is read before the metric rows: a trial that is done by now has written them all.
        status = directory.status(self.evaluation)
        run = self._run(trial.spec)
        if trial.name in self._ended:
            return
        evaluations = directory.evaluations(self.evaluation)
        snapshots = [subject.tokens for subject in evaluations if isinstance(subject, Snapshot)]
        try:
            content = directory.check_done() if status.done else None
            contents = {tokens: directory.snapshots.check(tokens) for tokens in snapshots if status.done}
        except DamagedError as error:
            self.damaged[trial.name] = str(error)
            self.fail(trial.spec, str(error))
            return
        rows, cursor = directory.rows(run.cursor)
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
            for subject, evaluation in evaluations.items():
                self.client.log_text(run.id, EVALUATION_FILE.encode(evaluation).decode(), sequences_path(subject))
            self.client.log_artifacts(run.id, str(directory.path / "sae"), "sae")
            for tokens, of_snapshot in contents.items():
                self.client.log_artifacts(run.id, str(directory.snapshots.path(tokens)), snapshot_path(tokens))
                self.client.set_tag(run.id, f"{SNAPSHOT}{tokens}", of_snapshot)
            self.client.set_tag(run.id, CONTENT, content)
            self.client.set_tag(run.id, SCHEMA, str(min(map(schema_of, evaluations.values()))))
            self._end(trial.spec, run.id, "FINISHED")
        elif status.failure is not None:
            self.fail(trial.spec, status.failure)
        elif not status.trained and (stop := self.stop_of(trial.name)) is not None:
            self.client.set_tag(run.id, STOPPED, json.dumps(stop)[:5000])
            self._end(trial.spec, run.id, "KILLED")

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
                run = self.client.create_run(
                    self.experiment_id, tags=tags, run_name=self._run_names.get(trial.name, trial.name)
                )
            else:
                finished = run.info.status == "FINISHED"  # said last, so everything is there
                if finished and int(run.data.tags.get(SCHEMA, 1)) >= schema_version():
                    self._ended.add(trial.name)
                elif not finished:
                    self.client.update_run(run.info.run_id, status="RUNNING")
                for tag in {FAILURE, STOPPED} & run.data.tags.keys():  # of before; it may be otherwise now
                    self.client.delete_tag(run.info.run_id, tag)
                if run.data.tags.get("mlflow.parentRunId") != self.parent_id:  # the other was deleted
                    self.client.set_tag(run.info.run_id, "mlflow.parentRunId", self.parent_id)
            check_artifacts(self.client.tracking_uri, run.info.artifact_uri)
            self._log_params(run, trial_params(trial))
            self._log_inputs(run)
            steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
            self._runs[trial.name] = _Run(run.info.run_id, steps, finished=finished)
        return self._runs[trial.name]

    def send_references(self, launch: Path) -> list[str]:
        """Sends the references of the launch, whose folder in storage it is; see `tracking.references`."""
        where = self.experiment_id, self.parent_id
        return send_references(self.client, *where, launch, self.evaluation.fingerprint)

    def send_features(self, trials: Sequence[Trial]) -> None:
        """Sends the tables of features that trials have; see `tracking.features`."""
        send_features(self.client, self.experiment_id, self.launch_id, trials, self.evaluation.fingerprint)

    def send_ratings(self, trials: Sequence[Trial]) -> None:
        """Sends the ratings of features that trials have; see `tracking.ratings`."""
        send_ratings(self.client, self.experiment_id, self.launch_id, trials, self.evaluation.fingerprint)

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

    def register(self, on_frontier: Collection[str], launch: Path) -> list[str]:
        """Enters SAEs of the frontier in the model registry; see `tracking.registry`.

        Args:
            on_frontier: the ids of their runs.
            launch: the launch's folder in storage.

        Returns:
            names of the registered models of the launch's sites; none where there is no registry, which is said.
        """
        registry = Registry(self.client, self.experiment_id, self.experiment, launch, self.evaluation.fingerprint)
        try:
            entered = registry.enter(on_frontier)
        except MlflowException as error:
            if is_away(error):
                raise
            self.notices.append(
                f"SAEs are not entered in MLflow's model registry ({self._said(error)}); the same command with "
                "--resume tries again, and tracking.registry: false leaves it out"
            )
            return []
        self.notices += entered.notices
        return entered.models

    def describe(
        self,
        sentences: Sequence[str],
        table: Sequence[Sequence[str]],
        files: Sequence[str],
        tables: Sequence[str] = (),
        models: Sequence[str] = (),
    ) -> None:
        """Writes the note on the page of the parent run, beside what people have written there; see `tracking.note`.

        Args:
            sentences: what the launch comes to.
            table: its frontier, as text; the first row is its head.
            files: artifacts that were logged.
            tables: those of them that are tables as `MlflowClient.log_table` writes them, which the UI shows.
            models: names of registered models.
        """
        before = self.client.get_run(self.parent_id).data.tags.get(MLFLOW_RUN_NOTE, "")
        where = self.experiment_id, self.launch_id, self.parent_id
        ours = compose(*where, sentences, table, files, models, room_beside(before))
        tags = {MLFLOW_RUN_NOTE: merged(before, ours)}
        tags |= {MLFLOW_LOGGED_ARTIFACTS: json.dumps([{"path": path, "type": "table"} for path in tables])}
        self.client.log_batch(self.parent_id, tags=[RunTag(*tag) for tag in tags.items()])

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
