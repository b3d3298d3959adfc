"""MLflow as the mirror of storage: what trial directories hold is sent there, again and again until it has arrived.

One experiment a sweep, one parent run a launch, the trials nested under it. Everything is found by tags before it is
made, and a run is asked what it has before rows are sent, so that mirroring twice changes nothing. After an error it is
asked again: what was sent may have arrived although no reply came.
"""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import json
import logging
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import read_mlflow_creds
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from gsae_ray.activations.sites import Site
from gsae_ray.errors import UserError, first_line
from gsae_ray.training.directory import START, Cursor, TrialDirectory
from gsae_ray.trial import TrialSpec

LAUNCH, TRIAL, KIND, IDENTITY = "gsae.launch", "gsae.trial", "gsae.kind", "gsae.identity"
EVALUATION, FAILURE, SWEEP = "gsae.evaluation", "gsae.failure", "gsae.sweep"
JOB, PROGRESS, STOP = "gsae.job", "gsae.progress", "gsae.stop"
"""Of a launch's run: the job that it is, how far it is (JSON), and that somebody wants it to stop (`remote`)."""

JOB_VARIABLE = "GSAE_JOB"
"""Tells a driver which job of a cluster it is."""

_LOG = logging.getLogger(__name__)
_BATCH = 900  # metrics a call; MLflow takes 1000

_HTTP = ("http", "https")
_SECRET_KEY = re.compile(r"password|passwd|passphrase|pwd|secret|api_?key|token(?![a-z])", re.IGNORECASE)
_ODBC_SECRET = re.compile(r"(^|;)\s*(password|pwd)\s*=", re.IGNORECASE)
_AFTER_A_NAME = re.compile(r":(?!\d+([/?#,]|$))[^@&\]]+@")
"""What is no port, up to an @: for some parsers a `/`, `#` or `?` in a password ends what they look at before it."""


def resolve_uri(tracking_uri: str | None) -> str:
    """`--tracking-uri`, else MLFLOW_TRACKING_URI, else an SQLite file in the working directory. Always absolute.

    Raises:
        UserError: see `refuse_password`.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    refuse_password(uri)
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def refuse_password(address: str, option: str = "--tracking-uri") -> None:
    """An address is printed and written down, so no password may be in it.

    Raises:
        UserError: there is one, or it is no address. Neither tells what was given.
    """
    try:
        urlsplit(address)
    except ValueError:
        raise UserError(f"{option}: what was given is not an address (SCHEME://HOST:PORT)") from None
    if not _has_password(address):
        return
    if option == "--address":
        remedy = "put the cluster's token into ~/.ray/auth_token or RAY_AUTH_TOKEN"
    elif "://" in address and not address.strip().lower().startswith(_HTTP):
        remedy = "give it as the database's client has it (PostgreSQL: PGPASSWORD or ~/.pgpass)"
    else:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    raise UserError(
        f"{option}: there is a password in the address, which is printed and written down; leave it out, and {remedy}"
    )


def _has_password(address: str) -> bool:
    """Whether an address may hold a password, for MLflow, SQLAlchemy or whoever reads it."""
    address = address.strip()  # as parsers do
    rest = address.partition("://")[2] or address
    parts = urlsplit(address)
    found = bool(parts.password)
    if parts.scheme in _HTTP:  # of a server's address the name alone may be a token; a database's has its user there
        found |= bool(parts.username)
    elif parts.scheme:
        with contextlib.suppress(SQLAlchemyError, ValueError):
            found |= bool(make_url(address).password)
    path = address.startswith(("/", ".", "~")) or parts.scheme.partition("+")[0] in ("sqlite", "file")
    if not path:
        found |= _AFTER_A_NAME.search(rest) is not None
    values = parse_qsl(rest.partition("?")[2])
    return found or any(_SECRET_KEY.search(key) or _ODBC_SECRET.search(value) for key, value in values)


def has_login() -> bool:
    """Whether MLflow would log in: with a token, or a password of the environment or of ~/.mlflow/credentials.

    Raises:
        UserError: that file cannot be read.
    """
    try:
        return bool(os.environ.get("MLFLOW_TRACKING_TOKEN") or read_mlflow_creds().password)
    except (configparser.Error, UnicodeDecodeError):  # it is not told: it quotes the file
        raise UserError(
            "~/.mlflow/credentials cannot be read: it has a line [mlflow], then mlflow_tracking_username = … and "
            "mlflow_tracking_password = …, with %% for a %"
        ) from None


@contextlib.contextmanager
def quick_failure(timeout_s: int = 30) -> Iterator[None]:
    """Within the context a server that refuses is an error at once, one that hangs after `timeout_s`.

    MLflow itself would try for minutes at every call, with the sweep's end or a Ctrl-C waiting for it; and it would
    send again what makes a run, although only the reply may have been lost. The mirror asks first, then tries again.
    What the user has set stays.
    """
    names = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s)}
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
    refuse_password(tracking_uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _is_file_in_a_folder(tracking_uri)
    if urlsplit(tracking_uri).scheme in _HTTP:
        has_login()  # a file that cannot be read is told of
    try:
        with quick_failure(timeout_s=10):
            client = MlflowClient(tracking_uri=tracking_uri)
            client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:  # a database needs its client
        reason = first_line(error)[:200]
        what = f"the MLflow server at {tracking_uri!r} does not answer ({reason}); start it"
        if urlsplit(tracking_uri).scheme not in _HTTP:
            what = (
                f"{tracking_uri!r} cannot be opened ({reason}); mend that (a database needs its client installed here)"
            )
        raise UserError(
            f"--tracking-uri: {what}, or leave --tracking-uri and MLFLOW_TRACKING_URI out to record in ./mlflow.db"
        ) from error
    return client


@dataclasses.dataclass
class _Run:
    """A trial's run, and what the server has confirmed that it has."""

    id: str
    steps: dict[str, int]
    """The last one of each metric."""
    cursor: Cursor = START


def _metrics(row: dict[str, Any], steps: dict[str, int]) -> list[Metric]:
    """Those of a row that lie after `steps`: rows that were cut back and written again do not go twice.

    Non-finite values are left out: MLflow stores infinities as huge numbers, which wreck its charts.
    """
    return [
        Metric(name, value, row["timestamp"], row["step"])
        for name, value in row["metrics"].items()
        if math.isfinite(value) and row["step"] > steps.get(name, -1)
    ]


def _batches(rows: list[dict[str, Any]], steps: dict[str, int]) -> Iterator[list[Metric]]:
    """Metrics of whole rows, as many as fit a call: a row arrives whole or not at all."""
    batch: list[Metric] = []
    for row in rows:
        metrics = _metrics(row, steps)
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
        self._runs: dict[str, _Run] = {}
        self._ended: set[str] = set()

    def _create_experiment(self, name: str) -> str:
        """A new experiment; that of an SQLite store keeps its artifacts beside the file, wherever the driver runs."""
        location = None
        if self.client.tracking_uri.startswith("sqlite:///"):
            database = Path(self.client.tracking_uri.removeprefix("sqlite:///"))
            location = (database.parent / "mlruns" / name).as_uri()
        try:
            return self.client.create_experiment(name, artifact_location=location)
        except MlflowException:  # by another sweep at the same moment, or by this one and the reply was lost
            if (found := self.client.get_experiment_by_name(name)) is None:
                raise
            return found.experiment_id

    def _find(self, **tags: str) -> Run | None:
        """The run with those tags. Of several, only the newest stays.

        There are several where a server carried out late what had been given up, and asked for anew.
        """
        names = {"launch": LAUNCH, "trial": TRIAL, "kind": KIND}
        query = " and ".join(f"tags.`{names[key]}` = '{value}'" for key, value in tags.items())
        runs = self.client.search_runs([self.experiment_id], query, order_by=["attributes.start_time DESC"])
        for run in runs[1:]:
            self.client.delete_run(run.info.run_id)
        return runs[0] if runs else None

    def open_launch(self, sweep_name: str, params: dict[str, Any], job: str | None = None) -> str:
        """The parent run, found or made, and running. Returns its id.

        Args:
            job: of the cluster, that the launch is run by.
        """
        run = self._find(launch=self.launch_id, kind="launch")
        if run is None:
            tags = {LAUNCH: self.launch_id, KIND: "launch", SWEEP: sweep_name, EVALUATION: self.fingerprint}
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=f"{sweep_name} {self.launch_id}")
        self._log_params(run, params)
        for tag in {STOP, PROGRESS} & run.data.tags.keys():  # an earlier session's
            self.client.delete_tag(run.info.run_id, tag)
        if job is not None:
            self.client.set_tag(run.info.run_id, JOB, job)
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
            Exception: the first one that a trial met, after all the others had their turn; at once if the server
                does not answer.
        """
        first: Exception | None = None
        for trial, directory in trials:
            if trial.name not in self._ended and (directory.path / "trial.json").exists():
                try:
                    self._sync_trial(trial, directory)
                except Exception as error:
                    self._runs.pop(trial.name, None)  # what arrived of it is the server's to say
                    first = first or error
                    if isinstance(error, MlflowException) and error.get_http_status_code() >= 500:
                        break  # not this trial's fault: the others would wait as long
        if first is not None:
            raise first

    def _sync_trial(self, trial: TrialSpec, directory: TrialDirectory) -> None:
        # Read before the rows: what is final now was written before, so nothing is missed.
        failure = directory.failure
        finished = directory.done and not directory.missing(self.fingerprint, self.encoders)
        run = self._run(trial)
        if trial.name in self._ended:
            return
        rows, cursor = directory.rows(run.cursor)
        encoders = self.encoders if finished else ()
        evaluations = {l0: found for l0 in encoders if (found := directory.evaluation(self.fingerprint, l0))}
        rows += sorted(evaluations.values(), key=lambda row: row["step"])  # `run.steps` only ever grow
        for batch in _batches(rows, run.steps):
            self.client.log_batch(run.id, metrics=batch)
            run.steps.update((metric.key, metric.step) for metric in batch)
        run.cursor = cursor
        if finished:
            for pursuit_l0, evaluation in evaluations.items():
                self.client.log_text(run.id, json.dumps(evaluation["sequences"]), sequences_path(pursuit_l0))
            self.client.log_artifacts(run.id, str(directory.path / "sae"), "sae")
            self._end(trial, run.id, "FINISHED")
        elif failure is not None:
            self.fail(trial, failure)

    def fail(self, trial: TrialSpec, reason: str) -> None:
        """Marks a trial's run as failed."""
        run_id = self._run(trial).id
        self.client.set_tag(run_id, FAILURE, reason[:5000])
        self._end(trial, run_id, "FAILED")

    def _end(self, trial: TrialSpec, run_id: str, status: str) -> None:
        self._find(launch=self.launch_id, trial=trial.name)  # a second run, made late, would be there by now: it goes
        self.client.set_terminated(run_id, status)
        self._ended.add(trial.name)

    def _run(self, trial: TrialSpec) -> _Run:
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
            else:
                if run.info.status == "FINISHED":  # said last, so everything is there
                    self._ended.add(trial.name)
                else:
                    self.client.update_run(run.info.run_id, status="RUNNING")
                if FAILURE in run.data.tags:
                    self.client.delete_tag(run.info.run_id, FAILURE)
                if run.data.tags.get("mlflow.parentRunId") != self.parent_id:  # the other was deleted
                    self.client.set_tag(run.info.run_id, "mlflow.parentRunId", self.parent_id)
            self._log_params(run, trial_params(trial))
            steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
            self._runs[trial.name] = _Run(run.info.run_id, steps)
        return self._runs[trial.name]

    def log_launch(
        self, metrics: dict[str, float], artifacts: Sequence[Path] = (), machines: Sequence[str] = ()
    ) -> None:
        """Metrics, files and kinds of machines of the parent run."""
        now = time.time_ns() // 1_000_000
        tags = [RunTag("gsae.updated", str(now)), *(RunTag(f"gsae.machine.{i}", m) for i, m in enumerate(machines))]
        points = [Metric(name, value, now, 0) for name, value in metrics.items() if math.isfinite(value)]
        self.client.log_batch(self.parent_id, metrics=points, tags=tags)
        for path in artifacts:
            self.client.log_artifact(self.parent_id, str(path))

    def report(self, progress: dict[str, Any]) -> bool:
        """Writes how far the launch is to its run. Returns whether somebody has asked there for its stop."""
        self.client.set_tag(self.parent_id, PROGRESS, json.dumps(progress))
        return STOP in self.client.get_run(self.parent_id).data.tags

    def close(self, status: str) -> None:
        """Ends the parent run; where the launch was killed, the runs of its unfinished trials too."""
        if status != "FINISHED":
            for name, run in self._runs.items():
                if name not in self._ended:
                    self.client.set_terminated(run.id, status)
        self.client.set_terminated(self.parent_id, status)


def sequences_path(pursuit_l0: int | None) -> str:
    """The artifact of a trial's run that holds an evaluation's sums of each held-out context."""
    return f"evaluation/sequences{'' if pursuit_l0 is None else f'-pursuit-{pursuit_l0}'}.json"


class _Rounds(threading.Thread):
    """Calls `attempt` every few seconds beside the sweep, until `finish`."""

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
        """One round; whether everything arrived."""
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
        """Stops the thread, then a last round; whether everything arrived.

        A server that works is waited for. One that hangs holds this up for two calls: the one that the thread is in,
        and the first of the last round, each as long as `quick_failure` says.
        """
        self._stop_asked.set()
        self.join()
        return self.attempt()


class MirrorThread(_Rounds):
    """Runs `Mirror.sync` every few seconds beside the sweep, outliving whatever the server does."""

    def __init__(
        self,
        mirror: Mirror,
        trials: Sequence[tuple[TrialSpec, TrialDirectory]],
        interval_s: float = 2,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Args:
            allowed: asked before each round; not when another driver mirrors these trials now.
        """
        super().__init__("mlflow-mirror", interval_s, allowed)
        self.mirror = mirror
        self.trials = trials

    def round(self) -> None:
        self.mirror.sync(self.trials)


class ReportThread(_Rounds):
    """Tells MLflow every few seconds how far a launch is, and hears there whether it is to stop.

    Not within `MirrorThread`'s rounds: one that uploads SAEs may take minutes.
    """

    def __init__(
        self,
        report: Callable[[dict[str, Any]], bool],
        progress: Callable[[], dict[str, Any]],
        stop: Callable[[], None],
        interval_s: float = 2,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Args:
            report: as `Mirror.report`; it may wait for a mirror that is still to be opened.
            stop: called when somebody has asked for it.
            allowed: as for `MirrorThread`.
        """
        super().__init__("mlflow-report", interval_s, allowed)
        self.report = report
        self.progress = progress
        self.stop = stop

    def round(self) -> None:
        if self.report(self.progress()):
            self.stop()


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
