"""Submission of a sweep to a Ray cluster: it is checked here, packed with this package, and run there as a job."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ray.job_submission import JobSubmissionClient

from gsae_ray.config import plain_yaml
from gsae_ray.config.load import load_sweep
from gsae_ray.config.sections import DatasetSettings, ModelSettings
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.cluster_nodes import SWEEP_KEY
from gsae_ray.errors import UserError
from gsae_ray.jobs import defaults
from gsae_ray.jobs.dashboard import connect, explained
from gsae_ray.jobs.job import EXPERIMENT_KEY, GRACE_KEY, LIVE, STORAGE_KEY, TRACKING_KEY, Job, jobs_of, state_of
from gsae_ray.names import own_command, refuse_address
from gsae_ray.storage.launch_directory import Resume
from gsae_ray.tracking.credentials import redacted, refuse_password
from gsae_ray.tracking.experiment import check
from gsae_ray.tracking.tags import JOB_VARIABLE


def submit(
    sweep: str | Path | Sweep,
    *,
    address: str | None = None,
    overrides: Sequence[str] = (),
    tracking_uri: str | None = None,
    storage: str = defaults.STORAGE,
    resume: Resume = "auto",
    grace_s: int = defaults.GRACE_S,
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
        grace_s: seconds that the driver has to end, from when the job is stopped until Ray kills it.

    Raises:
        UserError: something is wrong with the sweep, or the cluster; or the sweep runs there already.
    """
    if isinstance(sweep, Sweep):
        sweep_yaml, overrides = plain_yaml.dump(sweep.model_dump(mode="json")), ()
    else:
        file, sweep = Path(sweep), load_sweep(sweep, overrides)
        sweep_yaml = file.read_text(encoding="utf-8")
    _check_paths(sweep)
    uri = _server_uri(tracking_uri)
    refuse_address(storage, "--storage")
    if not storage.startswith(("/", "~")):
        raise UserError(f"--storage: {storage!r} is relative; give a path of the cluster, which every node sees")
    client = connect(address)
    check(uri, sweep.experiment_name, writing=False)
    _refuse_twice(client, sweep.name, storage)
    job_id = f"{sweep.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    command = ["python", "-m", "gsae_ray", "run", "sweep.yaml", "--storage", storage, "--tracking-uri", uri]
    command += [word for override in overrides for word in ("--set", override)]
    command += {True: ["--resume"], "auto": ["--resume", "auto"], False: []}[resume]
    metadata = {
        SWEEP_KEY: sweep.name,
        EXPERIMENT_KEY: sweep.experiment_name,
        TRACKING_KEY: uri,
        STORAGE_KEY: storage,
        GRACE_KEY: str(grace_s),
    }
    logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of every package that it uploads
    with _packed(sweep_yaml) as (working_directory, package), explained(client.get_address()):
        client.submit_job(
            # `exec`, so that a signal to the job is one to the driver.
            entrypoint="exec " + shlex.join(command),
            submission_id=job_id,
            runtime_env={
                "working_dir": str(working_directory),
                "py_modules": [str(package)],
                "env_vars": {JOB_VARIABLE: job_id, "RAY_JOB_STOP_WAIT_TIME_S": str(grace_s)},
            },
            metadata=metadata,
        )
    return Job(client, job_id, metadata, trusted=True)


@contextlib.contextmanager
def _packed(sweep_yaml: str) -> Iterator[tuple[Path, Path]]:
    """What the cluster gets: the job's working directory, with the sweep file, and a copy of this package."""
    with tempfile.TemporaryDirectory(prefix="gsae-submit-") as temporary:
        working_directory, package = Path(temporary, "job"), Path(temporary, "gsae_ray")
        working_directory.mkdir()
        (working_directory / "sweep.yaml").write_text(sweep_yaml, encoding="utf-8")
        shutil.copytree(Path(__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        yield working_directory, package


def _refuse_twice(client: JobSubmissionClient, sweep: str, storage: str) -> None:
    """Refuses a sweep that runs on the cluster already, in the same storage.

    Raises:
        UserError: it does.
    """
    for job, details in jobs_of(client):
        if (job.sweep, job.storage) == (sweep, storage) and state_of(details) in LIVE:
            follow, end = own_command("logs", "-f", job.id), own_command("stop", job.id)
            raise UserError(
                f"{sweep!r} is running already, as {job.id}: follow it with `{follow}`, end it with `{end}`, "
                "or give this sweep another name or --storage"
            )


def _server_uri(tracking_uri: str | None) -> str:
    """The address of the MLflow server that the job is to record to.

    Raises:
        UserError: it is not that of a server, or has a password.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    refuse_password(uri)
    if urlsplit(uri).scheme not in ("http", "https"):
        raise UserError(
            f"--tracking-uri: {redacted(uri)!r} is not an MLflow server that the cluster can reach; give its address "
            "(http://HOST:PORT), or set MLFLOW_TRACKING_URI"
        )
    return uri


def _check_paths(sweep: Sweep) -> None:
    """Refuses a sweep that names a path of this machine, where one of the cluster is wanted.

    Raises:
        UserError: it does.
    """
    names: dict[str, str | None] = {
        f"references.{i}.source": reference.source for i, reference in enumerate(sweep.references)
    }
    names |= {f"evaluation.probes.{i}.data": probe.data for i, probe in enumerate(sweep.evaluation.probes or ())}
    if (files := sweep.activations) is not None:
        names = {"activations.path": files.path, "activations.heldout": files.heldout, **names}
    if isinstance(sweep.model, ModelSettings):
        names = {"model.name": sweep.model.name, "model.tokenizer": sweep.model.tokenizer, **names}
    if isinstance(sweep.dataset, DatasetSettings):
        names = {"dataset.name": sweep.dataset.name, **names}
    for key, name in names.items():
        if name is None or name == "builtin" or name.startswith(("/", "~")):
            continue
        if name.startswith(".") or _is_local(name):
            raise UserError(
                f"{key}: {name!r} is a path of this machine; copy it to where all nodes of the cluster see it, and "
                "give that path, from / on"
            )


def _is_local(name: str) -> bool:
    """Whether a path or glob pattern matches something on this machine.

    Also true of what cannot be looked for (too long, `a**b`): it is no name of the hub either.
    """
    try:
        return any(Path().glob(name))
    except (OSError, ValueError, NotImplementedError):
        return True
