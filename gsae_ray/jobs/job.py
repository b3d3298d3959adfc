"""Sweeps as jobs of a Ray cluster: submit, status, logs, stop, list.

Everything goes over HTTP, to the cluster's dashboard (Ray Jobs) and to MLflow: who submits does not join the cluster.
The driver is an ordinary `gsae-ray run` there. It writes its progress to the launch's run in MLflow and reads there
whether it is to stop (`tracking`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.job_submission import JobSubmissionClient

import gsae_ray
from gsae_ray.capacity.nodes import Node
from gsae_ray.config import plain_yaml
from gsae_ray.config.load import load_sweep
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.cluster_nodes import SWEEP_KEY
from gsae_ray.driver.ray_session import keep_token_private
from gsae_ray.errors import INTERRUPTED, UserError, first_line
from gsae_ray.jobs.remote_launch import RemoteLaunch
from gsae_ray.names import own_command, refuse_address
from gsae_ray.storage.launch_directory import Resume
from gsae_ray.storage.progress import Progress
from gsae_ray.tracking.connection import PATIENCE_S
from gsae_ray.tracking.credentials import has_login, refuse_password
from gsae_ray.tracking.experiment import check
from gsae_ray.tracking.tags import JOB_VARIABLE

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
DEFAULT_STORAGE = "~/gsae_runs"
GRACE_S = 60.0
STOP_WAIT_S = 240
"""What a job has at most between SIGTERM, at which trials save a checkpoint too, and SIGKILL: a minute for trials that
do not end (`launch`), and two last calls of either thread that writes to an MLflow server that hangs (`tracking`)."""
LIVE = ("pending", "running")
BROKEN_S = 30.0
"""A connection to the cluster that breaks for no longer is waited for."""
_EXPERIMENT, _TRACKING, _STORAGE = "gsae.experiment", "gsae.tracking_uri", "gsae.storage"
_METADATA = {SWEEP_KEY, _EXPERIMENT, _TRACKING, _STORAGE}


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """What is known of a job."""

    id: str
    sweep: str
    state: str
    """pending, running, stopped, succeeded or failed"""
    message: str
    """The last that the driver said, of a job that has not come through; of others why there is no progress."""
    seconds: float
    """Since it was submitted, or what it took."""
    launch_id: str | None
    """None until the driver has begun, and when a later job has gone on with the launch."""
    link: str
    """Of the launch in the MLflow UI, or of MLflow."""
    progress: Progress | None
    forward_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Job:
    """A sweep on a cluster."""

    def __init__(
        self, client: JobSubmissionClient, job_id: str, metadata: dict[str, str], trusted: bool = False
    ) -> None:
        """
        Args:
            trusted: the MLflow server was named here, not only by the job.
        """
        self._trusted = trusted
        self.id = job_id
        self.sweep = metadata[SWEEP_KEY]
        self.experiment = metadata[_EXPERIMENT]
        self.tracking_uri = metadata[_TRACKING]
        self.storage = metadata[_STORAGE]
        self._client = client

    def _details(self) -> Any:
        """What Ray knows of it."""
        with _explained(self._client.get_address()):
            return self._client.get_job_info(self.id)

    @property
    def state(self) -> str:
        """See `JobStatus.state`."""
        return _state(self._details())

    @property
    def ended(self) -> bool:
        return self.state not in LIVE

    def _launch(self) -> RemoteLaunch | None:
        """Its launch in MLflow, if that has begun.

        A job names its server itself. What is here as a login goes to the server only that is named here too.

        Raises:
            UserError: MLflow does not answer, or is another one than here.
        """
        here = self._trusted or self.tracking_uri.rstrip("/") == os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
        if not here and has_login():
            raise UserError(
                f"the job's MLflow server is {self.tracking_uri}: set MLFLOW_TRACKING_URI to it, if the login that is "
                "here is for that server"
            )
        return RemoteLaunch.find(self.tracking_uri, self.experiment, self.id)

    def status(self) -> JobStatus:
        """How far it has come; without MLflow there is no progress, but the state.

        Raises:
            UserError: the cluster does not answer.
        """
        return self._status(self._details())

    def _status(self, details: Any, ask_mlflow: bool = True) -> JobStatus:
        """Of what Ray knows of it."""
        state = _state(details)
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
            link=launch.link if launch else self.tracking_uri,
            progress=progress,
            forward_ratio=launch.forward_ratio if launch else None,
        )

    def logs(self) -> str:
        """What the driver has printed so far."""
        with _explained(self._client.get_address()):
            logs: str = self._client.get_job_logs(self.id)
        return logs

    def follow(self) -> Iterator[str]:
        """What the driver prints, from the first line until it ends."""
        lines = self._client.tail_job_logs(self.id)
        loop = asyncio.new_event_loop()
        try:
            while True:
                try:
                    with _explained(self._client.get_address()):
                        line = loop.run_until_complete(anext(lines))
                except StopAsyncIteration:
                    return
                yield line
        finally:
            loop.close()

    def wait(self, timeout_s: float | None = None) -> str:
        """Until the job has ended. Returns its state.

        Raises:
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
                if time.monotonic() - heard > BROKEN_S:
                    raise
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.id} has not ended in {timeout_s:g} s")
            time.sleep(1)

    def stop(self, grace_s: float = GRACE_S, say: Callable[[str], None] = lambda text: None) -> str:
        """Asks the driver to stop; trials save a checkpoint. Then the job is ended. Returns its state.

        Args:
            grace_s: how long the driver has, from when it is asked by MLflow, until Ray ends the job.
            say: is told what is waited for.
        """
        if (state := self.state) not in LIVE:
            return state
        launch = None
        try:
            launch = self._launch()
            if launch is not None:
                launch.ask_to_stop()
        except Exception as error:  # noqa: BLE001 - without MLflow the job can still be ended
            say(
                f"MLflow cannot be asked ({first_line(error)}), so Ray tells the job; trials that run save a checkpoint"
            )
        else:
            if launch is None:
                say(f"{self.id} has not begun with its trials")
        if launch is not None:
            say(f"asked {self.id} to stop; trials that run save a checkpoint (at most {grace_s:g} s)")
            with contextlib.suppress(TimeoutError):
                self.wait(grace_s)
        if not self.ended:
            with _explained(self._client.get_address()):
                self._client.stop_job(self.id)
            with contextlib.suppress(TimeoutError):
                self.wait(STOP_WAIT_S + 10)
        state = self.state
        if state not in LIVE:
            with contextlib.suppress(Exception):
                if (launch := self._launch()) is not None:  # again: a launch that another job resumed is that one's
                    launch.close_what_is_open()  # a driver that had to be killed has left its runs as they were
        return state


def _state(details: Any) -> str:
    """A job's state in a word."""
    state = str(details.status.value).lower()
    return "stopped" if state == "failed" and details.driver_exit_code == INTERRUPTED else state


def _last_line(message: str | None) -> str:
    """Of a job's message, which ends with the driver's last lines."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def connect(address: str | None = None) -> JobSubmissionClient:
    """A client of a cluster's dashboard, with Ray's token where there is one.

    Raises:
        UserError: nobody answers, the token is missing or wrong, or the cluster runs another Ray.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    refuse_password(address, "--address")
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(f"--address: {address!r} is not that of a dashboard; give it as http://HOST:8265")
    # Ray's clients do not send a token that is there unless they are told to, and remember the first that they see.
    from ray._private.authentication import authentication_token_setup as setup

    logging.getLogger(setup.__name__).setLevel(logging.ERROR)
    if not ray.is_initialized():
        setup.AuthenticationTokenLoader.instance().reset_cache()
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    keep_token_private()
    with _explained(address):
        requests.get(f"{address.rstrip('/')}/api/version", timeout=PATIENCE_S).close()  # Ray's client waits for ever
        client = JobSubmissionClient(address)
    theirs = str(client._server_ray_version)
    if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise UserError(
            f"--address: the cluster at {address} runs Ray {theirs}, and this gsae-ray needs Ray {ray.__version__} on "
            f"both sides; pip install 'ray[default,tune]=={ray.__version__}' on its nodes"
        )
    return client


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Errors of the client, as a line that says what to do."""
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        raise UserError(
            f"--address: the cluster at {address} wants its token: put it into ~/.ray/auth_token, or set "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error
    except (OSError, aiohttp.ClientError) as error:  # requests' errors are OSErrors
        raise UserError(
            f"--address: no Ray dashboard answers at {address} ({first_line(error)[:200]}); is the tunnel up "
            "(`ray dashboard cluster.yaml`), and the port right?"
        ) from error
    except RuntimeError as error:
        raise UserError(f"--address: the cluster at {address} says: {first_line(error)[:500]}") from error


def nodes(address: str | None = None) -> list[Node]:
    """Of a cluster, as `gsae-ray plan` wants them; those that its autoscaler may add are not among them.

    Raises:
        UserError: nobody answers.
    """
    from ray.util.state import list_nodes

    client = connect(address)
    with _explained(client.get_address()):
        found = list_nodes(address=client.get_address(), filters=[("state", "=", "ALIVE")], detail=True)
    return [Node.alive(node.resources_total, node.labels or {}) for node in found]


def overview(address: str | None = None) -> list[JobStatus]:
    """Of all jobs, the newest first; progress of those that have not ended only, if their MLflow server answers."""
    found: list[JobStatus] = []
    silent: set[str] = set()
    for job, details in _jobs(connect(address)):
        live = _state(details) in LIVE
        found.append(job._status(details, ask_mlflow=live and job.tracking_uri not in silent))
        if live and found[-1].message:  # each call would wait for it again
            silent.add(job.tracking_uri)
    return found


def _jobs(client: JobSubmissionClient) -> list[tuple[Job, Any]]:
    """With what Ray knows of each, the newest first."""
    with _explained(client.get_address()):
        found = client.list_jobs()
    ours = [d for d in found if d.submission_id and (d.metadata or {}).keys() >= _METADATA]
    ours.sort(key=lambda details: details.start_time or 0, reverse=True)
    return [(Job(client, details.submission_id, details.metadata), details) for details in ours]


def find(name: str | None = None, address: str | None = None, running: bool = False) -> Job:
    """A job by its id, or the newest of a sweep; without a name the newest of all.

    Args:
        running: of those that have not ended; there must be one only.
    Raises:
        UserError: there is none.
    """
    client = connect(address)
    known = [(job, _state(details) in LIVE) for job, details in _jobs(client)]
    return _chosen(known, name, running, client.get_address())


def _chosen(known: Sequence[tuple[Job, bool]], name: str | None, running: bool, address: str) -> Job:
    """Of jobs, the newest first, and whether each runs: see `find`."""
    found = [job for job, live in known if name in (None, job.id, job.sweep) and (live or not running)]
    if running and len(found) > 1:  # the others may be somebody else's
        raise UserError(f"several of these run; give the id of one: {', '.join(job.id for job in found)}")
    if not found:
        what = "no sweep runs" if running else "no sweep was submitted"
        which = "" if name is None else f" as {name!r}"
        others = f" (there are: {', '.join(job.id for job, _ in known[:5])})" if known else ""
        raise UserError(f"{what} on {address}{which}{others}")
    return found[0]


def submit(
    sweep: str | Path | Sweep,
    *,
    address: str | None = None,
    overrides: Sequence[str] = (),
    tracking_uri: str | None = None,
    storage: str = DEFAULT_STORAGE,
    resume: Resume = "auto",
) -> Job:
    """Runs a sweep as a job of a Ray cluster. Returns once the cluster has taken it.

    The sweep is checked here, and shipped with this package, so that what was checked here is what runs there. The
    cluster needs the package's requirements only. Credentials are not shipped: Ray shows a job's environment to all who
    may list jobs. What models (HF_TOKEN) and MLflow (MLFLOW_TRACKING_USERNAME and _PASSWORD) want belongs into the
    environment that `ray start` has on the nodes.

    Args:
        sweep: a sweep file, or a `Sweep`.
        address: of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, or a tunnel's end, http://127.0.0.1:8265.
        overrides: `path.to.key=value`, for a sweep file.
        tracking_uri: of an MLflow server, as both the cluster and this machine reach it; default: MLFLOW_TRACKING_URI.
        storage: a folder that every node of the cluster sees at this path.
        resume: see `gsae_ray.run`; by default a job that is started again goes on.
    Raises:
        UserError: something is wrong with the sweep, or the cluster; or the sweep runs there already.
    """
    if isinstance(sweep, Sweep):
        shipped, overrides = plain_yaml.dump(sweep.model_dump(mode="json")), ()
    else:
        file, sweep = Path(sweep), load_sweep(sweep, overrides)
        shipped = file.read_text(encoding="utf-8")
    _check_paths(sweep)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    refuse_password(uri)
    if urlsplit(uri).scheme not in ("http", "https"):
        raise UserError(
            f"--tracking-uri: {uri!r} is not an MLflow server that the cluster can reach; give its address "
            "(http://HOST:PORT), or set MLFLOW_TRACKING_URI"
        )
    refuse_address(storage, "--storage")
    if not storage.startswith(("/", "~")):
        raise UserError(f"--storage: {storage!r} is relative; give a path of the cluster, which every node sees")
    client = connect(address)
    check(uri, sweep.experiment_name, writing=False)
    for job, details in _jobs(client):
        if (job.sweep, job.storage) == (sweep.name, storage) and _state(details) in LIVE:
            follow, end = own_command("logs", "-f", job.id), own_command("stop", job.id)
            raise UserError(
                f"{sweep.name!r} is running already, as {job.id}: follow it with `{follow}`, end it with `{end}`, "
                "or give this sweep another name or --storage"
            )
    job_id = f"{sweep.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    command = ["python", "-m", "gsae_ray", "run", "sweep.yaml", "--storage", storage, "--tracking-uri", uri]
    command += [word for override in overrides for word in ("--set", override)]
    command += {True: ["--resume"], "auto": ["--resume", "auto"], False: []}[resume]
    metadata = {SWEEP_KEY: sweep.name, _EXPERIMENT: sweep.experiment_name, _TRACKING: uri, _STORAGE: storage}
    with tempfile.TemporaryDirectory(prefix="gsae-submit-") as temporary:
        folder, package = Path(temporary, "job"), Path(temporary, "gsae_ray")
        folder.mkdir()
        (folder / "sweep.yaml").write_text(shipped, encoding="utf-8")
        source = Path(gsae_ray.__file__).parent
        shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of every package that it uploads
        with _explained(client.get_address()):
            client.submit_job(
                # `exec`, so that a signal to the job is one to the driver.
                entrypoint="exec " + shlex.join(command),
                submission_id=job_id,
                runtime_env={
                    "working_dir": str(folder),
                    "py_modules": [str(package)],
                    "env_vars": {JOB_VARIABLE: job_id, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                },
                metadata=metadata,
            )
    return Job(client, job_id, metadata, trusted=True)


def _is_here(name: str) -> bool:
    """Whether a path or pattern is of something here. What cannot be looked for is no name of the hub either."""
    try:
        return any(Path().glob(name))
    except (OSError, ValueError, NotImplementedError):
        return True


def _check_paths(sweep: Sweep) -> None:
    """What a sweep names by a path must be one of the cluster."""
    names = {
        "model.name": sweep.model.name,
        "model.tokenizer": sweep.model.tokenizer,
        "dataset.name": sweep.dataset.name,
    }
    for key, name in names.items():
        if name is None or name == "builtin" or name.startswith(("/", "~")):
            continue
        if name.startswith(".") or _is_here(name):
            raise UserError(
                f"{key}: {name!r} is a path of this machine; copy it to where all nodes of the cluster see it, and "
                "give that path, from / on"
            )
