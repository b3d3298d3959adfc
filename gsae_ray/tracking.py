"""MLflow as the mirror of storage: what trial directories hold is sent there, again and again until it has arrived.

One experiment a sweep, one parent run a launch, the trials nested under it. Everything is found by tags before it is
made, and a run is asked what it has before rows are sent, so that mirroring twice changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from gsae_ray.activations.sites import Site
from gsae_ray.errors import UserError, first_line
from gsae_ray.training.directory import START, Cursor, TrialDirectory
from gsae_ray.trial import TrialSpec

LAUNCH, TRIAL, KIND, IDENTITY = "gsae.launch", "gsae.trial", "gsae.kind", "gsae.identity"
EVALUATION, FAILURE, SWEEP = "gsae.evaluation", "gsae.failure", "gsae.sweep"

_LOG = logging.getLogger(__name__)
_BATCH = 900  # metrics a call; MLflow takes 1000


def resolve_uri(tracking_uri: str | None) -> str:
    """`--tracking-uri`, else MLFLOW_TRACKING_URI, else an SQLite file in the working directory. Always absolute."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


@contextlib.contextmanager
def quick_failure(timeout_s: int) -> Iterator[None]:
    """Within the context a server that refuses is an error after seconds, one that hangs after `timeout_s`.

    MLflow itself would try for minutes at every call, with the sweep's end or a Ctrl-C waiting for it.
    """
    names = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: value for name, value in names.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def check(tracking_uri: str) -> None:
    """Whether MLflow can be written to, without writing: an SQLite file is not made yet.

    Raises:
        UserError: the server cannot be reached, or the address means nothing to MLflow.
    """
    if not _is_file_in_a_folder(tracking_uri):
        connect(tracking_uri)


def _is_file_in_a_folder(tracking_uri: str) -> bool:
    """Whether it is an SQLite store; a missing folder would be made by MLflow, wherever the typo points."""
    if not tracking_uri.startswith("sqlite:///"):
        return False
    folder = Path(tracking_uri.removeprefix("sqlite:///")).parent
    if not folder.is_dir():
        raise UserError(f"--tracking-uri: {tracking_uri}: there is no such folder; make {folder} first")
    return True


def connect(tracking_uri: str) -> MlflowClient:
    """A client of a store that answers. An SQLite file is made where there is none.

    Raises:
        UserError: the server cannot be reached, or the address means nothing to MLflow.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _is_file_in_a_folder(tracking_uri)
    try:
        with quick_failure(timeout_s=10):
            client = MlflowClient(tracking_uri=tracking_uri)
            client.search_experiments(max_results=1)
    except (MlflowException, OSError, ValueError) as error:
        reason = first_line(error)[:200]
        raise UserError(
            f"--tracking-uri: the MLflow server at {tracking_uri!r} does not answer ({reason}); start it, or leave "
            "--tracking-uri and MLFLOW_TRACKING_URI out to record in ./mlflow.db"
        ) from error
    return client


def _metrics(row: dict[str, Any]) -> list[Metric]:
    """Non-finite values are left out: MLflow stores infinities as huge numbers, which wreck its charts."""
    items = row["metrics"].items()
    return [Metric(name, value, row["timestamp"], row["step"]) for name, value in items if math.isfinite(value)]


def _batches(rows: list[dict[str, Any]]) -> Iterator[list[Metric]]:
    """Metrics of whole rows, as many as fit a call: a row arrives whole or not at all."""
    batch: list[Metric] = []
    for row in rows:
        metrics = _metrics(row)
        if batch and len(batch) + len(metrics) > _BATCH:
            yield batch
            batch = []
        batch += metrics
    if batch:
        yield batch


def trial_params(trial: TrialSpec) -> dict[str, Any]:
    """Flat parameters of a trial's run."""
    site = Site(trial.site)
    training = trial.to_json()["training"]
    return {
        "architecture": trial.architecture,
        "recipe": trial.recipe,
        "variant": trial.variant,
        "d_in": trial.d_in,
        "d_sae": trial.d_sae,
        "site": trial.site,
        "layer": "" if site.layer is None else site.layer,
        "point": site.point,
        **{key: value for key, value in trial.hyperparameters.items() if value is not None},
        **training,
        **({} if trial.parent is None else {"parent": trial.parent}),
    }


class Mirror:
    """Brings an MLflow server up to date with the trial directories of one launch."""

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        launch_id: str,
        evaluation_fingerprint: str,
        encoders: Sequence[int | None] = (None,),
    ) -> None:
        """
        Args:
            encoders: the evaluations that a trial needs to be finished, as `EvaluationSettings.encoders`.
        """
        self.client = connect(tracking_uri)
        self.launch_id = launch_id
        self.fingerprint = evaluation_fingerprint
        self.encoders = encoders
        found = self.client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        self.experiment_id = found.experiment_id if found else self._create_experiment(experiment)
        self._runs: dict[str, str] = {}
        self._cursors: dict[str, Cursor] = {}
        self._mirrored: dict[str, int] = {}
        self._ended: set[str] = set()

    def _create_experiment(self, name: str) -> str:
        """A new experiment; that of an SQLite store keeps its artifacts beside the file, wherever the driver runs."""
        location = None
        if self.client.tracking_uri.startswith("sqlite:///"):
            database = Path(self.client.tracking_uri.removeprefix("sqlite:///"))
            location = (database.parent / "mlruns" / name).as_uri()
        return self.client.create_experiment(name, artifact_location=location)

    def _find(self, **tags: str) -> Run | None:
        names = {"launch": LAUNCH, "trial": TRIAL, "kind": KIND}
        query = " and ".join(f"tags.`{names[key]}` = '{value}'" for key, value in tags.items())
        runs = self.client.search_runs([self.experiment_id], filter_string=query, max_results=1)
        return runs[0] if runs else None

    def open_launch(self, sweep_name: str, params: dict[str, Any]) -> str:
        """The parent run, found or made, and running. Returns its id."""
        run = self._find(launch=self.launch_id, kind="launch")
        if run is None:
            tags = {LAUNCH: self.launch_id, KIND: "launch", SWEEP: sweep_name, EVALUATION: self.fingerprint}
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=f"{sweep_name} {self.launch_id}")
        self._log_params(run, params)
        self.client.update_run(run.info.run_id, status="RUNNING")
        self.parent_id: str = run.info.run_id
        return self.parent_id

    def _log_params(self, run: Run, params: dict[str, Any]) -> None:
        """Those that are missing: whoever made the run may have died before it had them all."""
        missing = [Param(key, str(value)) for key, value in params.items() if key not in run.data.params]
        if missing:
            self.client.log_batch(run.info.run_id, params=missing)

    def sync(self, trials: Sequence[tuple[TrialSpec, TrialDirectory]]) -> None:
        """Sends what is new in the directories of trials that have begun.

        Raises:
            MlflowException: the server does not answer.
            Exception: the first one that a trial's directory met, after all the others had their turn.
        """
        first: Exception | None = None
        for trial, directory in trials:
            if trial.name not in self._ended and (directory.path / "trial.json").exists():
                try:
                    self._sync_trial(trial, directory)
                except MlflowException:
                    raise  # the server: it would fail for the others too
                except Exception as error:
                    first = first or error
        if first is not None:
            raise first

    def _sync_trial(self, trial: TrialSpec, directory: TrialDirectory) -> None:
        # Read before the rows: what is final now was written before, so nothing is missed.
        failure = directory.failure
        finished = directory.done and not directory.missing(self.fingerprint, self.encoders)
        run_id = self._run(trial)
        if trial.name in self._ended:
            return
        # Rows that were cut back and written again come again; `_mirrored` keeps them from going twice.
        rows, cursor = directory.rows(self._cursors.get(trial.name, START))
        rows = [row for row in rows if row["step"] > self._mirrored[trial.name]]
        encoders = self.encoders if finished else ()
        evaluations = {l0: found for l0 in encoders if (found := directory.evaluation(self.fingerprint, l0))}
        for batch in _batches([*rows, *evaluations.values()]):
            self.client.log_batch(run_id, metrics=batch)
        self._cursors[trial.name] = cursor
        if rows:
            self._mirrored[trial.name] = rows[-1]["step"]
        if finished:
            for pursuit_l0, evaluation in evaluations.items():
                self.client.log_text(run_id, json.dumps(evaluation["sequences"]), sequences_path(pursuit_l0))
            self.client.log_artifacts(run_id, str(directory.path / "sae"), "sae")
            self._end(trial, run_id, "FINISHED")
        elif failure is not None:
            self.fail(trial, failure)

    def fail(self, trial: TrialSpec, reason: str) -> None:
        """Marks a trial's run as failed."""
        run_id = self._run(trial)
        self.client.set_tag(run_id, FAILURE, reason[:5000])
        self._end(trial, run_id, "FAILED")

    def _end(self, trial: TrialSpec, run_id: str, status: str) -> None:
        self.client.set_terminated(run_id, status)
        self._ended.add(trial.name)

    def _run(self, trial: TrialSpec) -> str:
        """The trial's run, found or made."""
        if trial.name not in self._runs:
            run = self._find(launch=self.launch_id, trial=trial.name)
            if run is None:
                tags = {
                    LAUNCH: self.launch_id,
                    KIND: "trial",
                    TRIAL: trial.name,
                    IDENTITY: trial.identity,
                    EVALUATION: self.fingerprint,
                    "mlflow.parentRunId": self.parent_id,
                }
                run = self.client.create_run(self.experiment_id, tags=tags, run_name=trial.name)
                self._mirrored[trial.name] = -1
            else:
                history = self.client.get_metric_history(run.info.run_id, "train/loss")
                self._mirrored[trial.name] = max((metric.step for metric in history), default=-1)
                if run.info.status == "FINISHED":  # said last, so everything is there
                    self._ended.add(trial.name)
                else:
                    self.client.update_run(run.info.run_id, status="RUNNING")
                if FAILURE in run.data.tags:
                    self.client.delete_tag(run.info.run_id, FAILURE)
            self._log_params(run, trial_params(trial))
            self._runs[trial.name] = run.info.run_id
        return self._runs[trial.name]

    def log_launch(self, metrics: dict[str, float], artifacts: Sequence[Path] = ()) -> None:
        """Metrics and files of the parent run."""
        now = time.time_ns() // 1_000_000
        points = [Metric(name, value, now, 0) for name, value in metrics.items() if math.isfinite(value)]
        self.client.log_batch(self.parent_id, metrics=points, tags=[RunTag("gsae.updated", str(now))])
        for path in artifacts:
            self.client.log_artifact(self.parent_id, str(path))

    def close(self, status: str) -> None:
        """Ends the parent run; where the launch was killed, the runs of its unfinished trials too."""
        if status != "FINISHED":
            for name, run_id in self._runs.items():
                if name not in self._ended:
                    self.client.set_terminated(run_id, status)
        self.client.set_terminated(self.parent_id, status)


def sequences_path(pursuit_l0: int | None) -> str:
    """The artifact of a trial's run that holds an evaluation's sums of each held-out context."""
    return f"evaluation/sequences{'' if pursuit_l0 is None else f'-pursuit-{pursuit_l0}'}.json"


class MirrorThread(threading.Thread):
    """Runs `Mirror.sync` every few seconds beside the sweep, outliving whatever the server does."""

    def __init__(
        self, mirror: Mirror, trials: Sequence[tuple[TrialSpec, TrialDirectory]], interval_s: float = 2
    ) -> None:
        super().__init__(name="mlflow-mirror", daemon=True)
        self.mirror = mirror
        self.trials = trials
        self.interval_s = interval_s
        self.last_error: str | None = None
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(self.interval_s):
            self.attempt()

    def attempt(self) -> bool:
        """One round; whether everything arrived."""
        try:
            self.mirror.sync(self.trials)
            self.last_error = None
        except Exception as error:  # whatever it is, it must not touch the sweep: storage has everything
            self.last_error = first_line(error)
            _LOG.debug("mirroring to MLflow failed; trying again", exc_info=True)
        return self.last_error is None

    def finish(self) -> bool:
        """Stops the thread, then a last round; whether everything arrived."""
        self._stop_asked.set()
        self.join()
        return self.attempt()


def download_sequences(client: MlflowClient, run_id: str, pursuit_l0: int | None) -> dict[str, list[float]]:
    """What a trial's evaluation summed over each held-out context."""
    uri = f"runs:/{run_id}/{sequences_path(pursuit_l0)}"
    with tempfile.TemporaryDirectory(prefix="gsae-") as folder:
        path = mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=client.tracking_uri)
        sequences: dict[str, list[float]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return sequences


def download_sae(client: MlflowClient, run_id: str, directory: str | Path) -> Path:
    """Fetches a trial's SAE to a folder in `directory`."""
    uri = client.tracking_uri
    mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="sae", dst_path=str(directory), tracking_uri=uri)
    return Path(directory) / "sae"
