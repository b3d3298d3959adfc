"""A sweep that runs as a job of a Ray cluster: its status, its logs, its end; and the jobs that there are.

Everything goes over HTTP, to the cluster's dashboard (Ray Jobs) and to MLflow: who submits does not join the cluster.
The driver is an ordinary `gsae-ray run` there, and writes its progress to the launch's run in MLflow.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray.job_submission import JobSubmissionClient

from gsae_ray.driver.cluster_nodes import SWEEP_KEY
from gsae_ray.errors import INTERRUPTED, UserError
from gsae_ray.jobs import defaults
from gsae_ray.jobs.dashboard import connect, explained
from gsae_ray.jobs.remote_launch import RemoteLaunch
from gsae_ray.storage.progress import Progress
from gsae_ray.tracking.credentials import has_login, redacted
from gsae_ray.tracking.pages import trials_page
from gsae_ray.tracking.runs import recorded_experiments

LIVE = ("pending", "running")
MAX_SILENCE_S = 30.0
"""A connection to the cluster that breaks for no longer is waited for."""
EXPERIMENT_KEY, TRACKING_KEY, STORAGE_KEY = "gsae.experiment", "gsae.tracking_uri", "gsae.storage"
GRACE_KEY = "gsae.grace_s"
_METADATA = {SWEEP_KEY, EXPERIMENT_KEY, TRACKING_KEY, STORAGE_KEY}
"""What every job of ours carries; GRACE_KEY came later."""


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """What is known of a job."""

    id: str
    sweep: str
    state: str
    """pending, running, stopped, succeeded or failed"""
    message: str
    """The driver's last line, where the job failed or was stopped; else why there is no progress, or nothing."""
    seconds: float
    """From when it was submitted until it ended, or until now."""
    launch_id: str | None
    """None until the driver has begun its launch, and once a later job has resumed that."""
    link: str
    """To the launch in the MLflow UI; to MLflow where there is none."""
    progress: Progress | None
    forward_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Job:
    """A sweep on a cluster.

    Args:
        client: of the cluster's dashboard.
        job_id: its submission id.
        metadata: what `submit` has written there about it; or anything, where somebody else's tool has.
        trusted: the MLflow server was named on this machine, not only by the job.
    """

    def __init__(
        self, client: JobSubmissionClient, job_id: str, metadata: dict[str, str], trusted: bool = False
    ) -> None:
        self._trusted = trusted
        self.id = job_id
        self.sweep = metadata[SWEEP_KEY]
        self.experiment = metadata[EXPERIMENT_KEY]
        self.tracking_uri = metadata[TRACKING_KEY]
        self.storage = metadata[STORAGE_KEY]
        try:
            self._grace_s = int(metadata[GRACE_KEY])
        except (KeyError, ValueError):  # of an older version, or not written by `submit`
            self._grace_s = defaults.GRACE_S
        self._client = client

    def _details(self) -> Any:
        """Ray's `JobDetails` of it."""
        with explained(self._client.get_address()):
            return self._client.get_job_info(self.id)

    @property
    def state(self) -> str:
        """See `JobStatus.state`."""
        return state_of(self._details())

    @property
    def ended(self) -> bool:
        """Whether it is over, however it ended."""
        return self.state not in LIVE

    def _launch(self) -> RemoteLaunch | None:
        """Its launch in MLflow; None before that has begun.

        Raises:
            UserError: MLflow does not answer, or see `_check_login`.
        """
        self._check_login()
        return RemoteLaunch.find(self.tracking_uri, self.experiment, self.id)

    def _check_login(self) -> None:
        """Refuses to send the login of this machine to a server that was not named on this machine too.

        A job says itself where its MLflow server is, and may be somebody else's.

        Raises:
            UserError: there is a login here, and it may not be for the job's server.
        """
        here = self._trusted or self.tracking_uri.rstrip("/") == os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
        if not here and has_login():
            raise UserError(
                f"the job's MLflow server is {redacted(self.tracking_uri)}: set MLFLOW_TRACKING_URI to it, if the "
                "login that is here is for that server"
            )

    @property
    def trials_link(self) -> str:
        """To its experiment's trials in the MLflow UI; to MLflow where there is no such experiment yet."""
        with contextlib.suppress(UserError):  # MLflow does not answer, or another login is here than it wants
            self._check_login()
            if (found := recorded_experiments(self.tracking_uri).get(self.experiment)) is not None:
                return trials_page(self.tracking_uri, found)
        return redacted(self.tracking_uri)

    def status(self) -> JobStatus:
        """How far it has come. Where MLflow does not answer there is a state and no progress.

        Raises:
            UserError: the cluster does not answer.
        """
        return self._status(self._details())

    def _status(self, details: Any, ask_mlflow: bool = True) -> JobStatus:
        """See `status`.

        Args:
            details: what Ray says of the job.
            ask_mlflow: whether to look for progress.
        """
        state = state_of(details)
        launch, trouble = None, ""
        if ask_mlflow:
            try:
                launch = self._launch()
            except UserError as error:
                trouble = str(error)
        progress = launch.progress if launch else None
        if progress is not None and state not in LIVE:  # a driver that was killed has told of trials that ran
            progress = progress.ended
        end = details.end_time / 1000 if details.end_time else time.time()
        return JobStatus(
            id=self.id,
            sweep=self.sweep,
            state=state,
            message=trouble if state in LIVE or state == "succeeded" else _last_line(details.message),
            seconds=max(0.0, end - details.start_time / 1000) if details.start_time else 0.0,
            launch_id=launch.launch_id if launch else None,
            link=launch.link if launch else redacted(self.tracking_uri),
            progress=progress,
            forward_ratio=launch.forward_ratio if launch else None,
        )

    def logs(self) -> str:
        """What the driver has printed so far."""
        with explained(self._client.get_address()):
            logs: str = self._client.get_job_logs(self.id)
        return logs

    def follow(self) -> Iterator[str]:
        """What the driver prints, from the first line until it ends."""
        lines = self._client.tail_job_logs(self.id)
        loop = asyncio.new_event_loop()
        try:
            while True:
                try:
                    with explained(self._client.get_address()):
                        line = loop.run_until_complete(anext(lines))
                except StopAsyncIteration:
                    return
                yield line
        finally:
            loop.close()

    def wait(self, timeout_s: float | None = None) -> str:
        """Waits until the job has ended, and returns its state.

        Raises:
            UserError: the cluster does not answer for longer than `MAX_SILENCE_S`.
            TimeoutError: it has not ended by then.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        heard = time.monotonic()
        while True:
            try:
                if (state := self.state) not in LIVE:
                    return state
                heard = time.monotonic()
            except UserError:  # a tunnel may break for a moment
                if time.monotonic() - heard > MAX_SILENCE_S:
                    raise
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.id} has not ended in {timeout_s:g} s")
            time.sleep(1)

    def stop(self, say: Callable[[str], None] = lambda _: None) -> str:
        """Ends the job: Ray sends SIGTERM, at which trials save a checkpoint, and SIGKILL when its grace is over.

        Args:
            say: is told what is waited for.

        Returns:
            The job's state, once it has ended.

        Raises:
            UserError: the cluster does not answer.
        """
        if (state := self.state) not in LIVE:
            return state
        with explained(self._client.get_address()):
            self._client.stop_job(self.id)
        say(f"asked {self.id} to stop; trials that run save a checkpoint (at most {self._grace_s} s)")
        with contextlib.suppress(TimeoutError):
            self.wait(self._grace_s + 10)
        if (state := self.state) not in LIVE:
            with contextlib.suppress(Exception):  # without MLflow the job has been stopped all the same
                if (launch := self._launch()) is not None:
                    launch.close_what_is_open()  # a driver that had to be killed has left its runs as they were
        return state


def state_of(details: Any) -> str:
    """See `JobStatus.state`; a driver that was interrupted otherwise than by Ray counts as stopped.

    Args:
        details: what Ray says of the job.
    """
    state = str(details.status.value).lower()
    return "stopped" if state == "failed" and details.driver_exit_code == INTERRUPTED else state


def _last_line(message: str | None) -> str:
    """The last line of a job's message, which ends as the driver's output does."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def overview(address: str | None = None) -> list[JobStatus]:
    """The status of every sweep that was submitted to a cluster, the newest first.

    Only those that have not ended have progress, and only where their MLflow server answers.

    Raises:
        UserError: the cluster does not answer.
    """
    found: list[JobStatus] = []
    silent: set[str] = set()
    for job, details in jobs_of(connect(address)):
        live = state_of(details) in LIVE
        found.append(job._status(details, ask_mlflow=live and job.tracking_uri not in silent))
        if live and found[-1].message:  # the server does not answer, and the next job would wait for it again
            silent.add(job.tracking_uri)
    return found


def jobs_of(client: JobSubmissionClient) -> list[tuple[Job, Any]]:
    """The jobs of a cluster that are sweeps, with what Ray says of each; the newest first.

    Raises:
        UserError: the cluster does not answer.
    """
    with explained(client.get_address()):
        found = client.list_jobs()
    ours = [d for d in found if d.submission_id and (d.metadata or {}).keys() >= _METADATA]
    ours.sort(key=lambda details: details.start_time or 0, reverse=True)
    return [(Job(client, details.submission_id, details.metadata), details) for details in ours]


def find(name: str | None = None, address: str | None = None, running: bool = False) -> Job:
    """A job of a cluster.

    Args:
        name: its id, or its sweep's name, of which the newest is taken; default: the newest of all.
        address: of the cluster's dashboard.
        running: look among those that have not ended, where only one may match.

    Raises:
        UserError: there is none, or several run; or the cluster does not answer.
    """
    client = connect(address)
    known = [(job, state_of(details) in LIVE) for job, details in jobs_of(client)]
    return _chosen(known, name, running, client.get_address())


def _chosen(known: Sequence[tuple[Job, bool]], name: str | None, running: bool, address: str) -> Job:
    """See `find`; of `known` jobs, the newest first, and whether each is live."""
    found = [job for job, live in known if name in (None, job.id, job.sweep) and (live or not running)]
    if running and len(found) > 1:  # the others may be somebody else's
        raise UserError(f"several of these run; give the id of one: {', '.join(job.id for job in found)}")
    if not found:
        what = "no sweep runs" if running else "no sweep was submitted"
        which = "" if name is None else f" as {name!r}"
        others = f" (there are: {', '.join(job.id for job, _ in known[:5])})" if known else ""
        raise UserError(f"{what} on {redacted(address)}{which}{others}")
    return found[0]
