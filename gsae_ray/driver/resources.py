"""What a launch asks of the cluster: activations to keep, and what Ray is asked for each process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.capacity import fit
from gsae_ray.capacity.nodes import PRODUCER, selector
from gsae_ray.driver import cluster_nodes
from gsae_ray.driver.prepare import PreparedSweep


@dataclasses.dataclass(frozen=True)
class ResourceRequest:
    """What a launch asks of the cluster; nothing, where there is nothing to do."""

    budget_bytes: int = 0
    """Bytes of activations that the store may keep."""
    trials: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Trial to be trained -> the resources that Ray is asked for it."""
    producer_bytes: int = 0
    """Bytes of its node's memory that Ray is asked for each producer."""
    producer_labels: dict[str, str] = dataclasses.field(default_factory=dict)
    """Selector of the nodes that producers may go to."""
    notices: tuple[str, ...] = ()
    """Lines that the user should read."""


def request_resources(prepared: PreparedSweep, readers: Mapping[str, ReaderSpec]) -> ResourceRequest:
    """Checks whether a sweep fits the cluster, and works out what to ask of it.

    Args:
        prepared: the sweep.
        readers: the trials that are to be trained, by name.

    Raises:
        UserError: a trial, the producers or a block do not fit.
    """
    layout, sweep, nodes = prepared.layout, prepared.sweep, cluster_nodes.nodes()
    trials = fit.trial_requests(sweep, nodes, [trial for trial in prepared.trials if trial.name in readers])
    producer = fit.producer_request(sweep, nodes, prepared.producer)
    notices = fit.check_producers(sweep, nodes, prepared.producer)
    notices += fit.check_requests(sweep, nodes, fit.largest(sweep, trials.values()), producer)
    sites = tuple(sorted({site for reader in readers.values() for site in reader.sites}))
    blocks = range(layout.blocks_for(max((reader.rows for reader in readers.values()), default=0)))
    sizes = [layout.nbytes(block, sites) for block in blocks]
    return ResourceRequest(
        budget_bytes=fit.budget(sweep, nodes, max(sizes, default=0), sum(sizes), len(sites)),
        trials={name: request.to_ray() for name, request in trials.items()},
        producer_bytes=producer.memory,
        producer_labels=selector(PRODUCER, nodes),
        notices=tuple(notices),
    )
