"""The nodes of the cluster that this process has joined: what they are, and whether they share storage."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gsae_ray.capacity import nodes as capacity_nodes
from gsae_ray.capacity.nodes import Launcher, Node
from gsae_ray.errors import UserError

SWEEP_KEY = "gsae.sweep"
"""Key of the sweep's name in the metadata of a job that `gsae-ray submit` has submitted."""
TELL_AFTER_S = 30.0
"""A wait for free resources of the cluster that takes longer is told to the user."""
TELL_EVERY_S = 600.0
"""Between two lines about a wait that goes on."""
LAUNCHER_FILE = "ray_bootstrap_config.yaml"
"""Where `ray up` puts the cluster's file: in the home folder of the head, on which drivers run. Ray does not tell."""


def nodes() -> list[Node]:
    """Returns the nodes of the cluster that this process has joined, and those that its launcher may still start."""
    alive = [Node.alive(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]]
    file = Path.home() / LAUNCHER_FILE
    if file.exists():
        with contextlib.suppress(UserError):  # its types may go without resources; then we know what is there
            launcher = Launcher.read(file)
            if launcher.started(alive):  # else this is another Ray than the one that was launched here
                return launcher.at_largest(alive)
    return alive


def selector(role: str) -> dict[str, str]:
    """Returns the label selector of a role (`capacity.nodes.selector`) among the nodes of this cluster."""
    return capacity_nodes.selector(role, nodes())


def describe_free_resources() -> str:
    """Returns a line: `0 of 2 CPUs, 14.0 of 14.0 GiB of memory are free; also on this cluster: sweep a (job a-1)`."""
    total, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s" for kind in ("CPU", "GPU") if total.get(kind)]
    parts.append(f"{free.get('memory', 0) / 2**30:.1f} of {total.get('memory', 0) / 2**30:.1f} GiB of memory")
    others = ""
    with contextlib.suppress(ray.exceptions.RayError):  # the line is of use without them
        others = ", ".join(_others())
    and_others = f"; also on this cluster: {others}" if others else ""
    return f"{', '.join(parts)} are free{and_others}"


def _others() -> Iterator[str]:
    """Yields the other drivers that have joined the cluster, as Ray knows them."""
    worker = ray._private.worker.global_worker
    jobs = worker.gcs_client.get_all_job_info(
        skip_submission_job_info_field=True, skip_is_running_tasks_field=True, timeout=10
    )
    for job_id, job in jobs.items():
        told = job.config.metadata
        if job.is_dead or job_id == worker.current_job_id or job.config.ray_namespace.startswith("_ray_internal"):
            continue
        if "job_submission_id" in told:
            sweep = f"sweep {told[SWEEP_KEY]} " if SWEEP_KEY in told else ""
            yield f"{sweep}(job {told['job_submission_id']})"
        else:
            yield f"process {job.driver_pid} on {job.driver_ip_address}"


def check_shared(folder: Path, timeout_s: float = 60) -> None:
    """Checks that every node of the cluster sees the same folder.

    On nodes that come later, the trials that they get check it.

    Raises:
        UserError: a node does not.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return
    probe = folder / f".shared-{secrets.token_hex(4)}"
    probe.touch()
    try:
        sees_probe = ray.remote(_sees)
        answers = []
        for node in others:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            answers.append(sees_probe.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(str(probe)))
        done, _ = ray.wait(answers, num_returns=len(answers), timeout=timeout_s)
        for ref in done:
            try:
                host, sees = ray.get(ref)
            except ray.exceptions.RayError:  # the node has gone meanwhile
                continue
            if not sees:
                raise UserError(
                    f"--storage: node {host} does not see {folder}; every node of a cluster must see it at the same "
                    "path (a shared file system), since a trial goes on elsewhere when its node goes"
                )
    finally:
        probe.unlink(missing_ok=True)


def _sees(path: str) -> tuple[str, bool]:
    """Returns, on another node, its name and whether it sees a file."""
    return socket.gethostname(), Path(path).exists()
