"""Whether a sweep fits a cluster: where trials and producers go, how many trials at a time, what is too small."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gsae_ray.capacity.gpus import gpu_of
from gsae_ray.capacity.memory import SURELY, Memory, of_trial
from gsae_ray.capacity.nodes import ID, PRODUCER, TRAINER, Node, awaited, may_grow, nodes_for, selector
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError

OBJECT_STORE_SHARE = 0.6
"""Of the cluster's object store, for activations; the rest is headroom for readers that still hold a block."""


def shares(sweep: Sweep, nodes: Sequence[Node], trials: Sequence[TrialSpec]) -> dict[str, float]:
    """GPUs of each trial, by name: what the sweep says, or with `auto` the part of a GPU whose memory it needs.

    Of GPUs that differ the smallest decides, since a trial does not know which it gets.

    Raises:
        UserError: a trial needs more memory than there is, or with `auto` that of the GPUs is not known.
    """
    given, here = sweep.trials.gpus, nodes_for(TRAINER, nodes)
    needs = {trial.name: of_trial(trial, given != 0) for trial in trials}
    with_cpus = [node for node in here if node.holds(sweep.trials.cpus, 0)]
    hosts = [int(node.resources["memory"]) for node in with_cpus if "memory" in node.resources]
    _check_trials(trials, {name: need.host for name, need in needs.items()}, hosts, len(with_cpus), "node for trials")
    if given == 0:
        return dict.fromkeys(needs, 0.0)
    with_gpu = [node for node in here if node.resources.get("GPU")]
    known = [gpu for node in with_gpu if (gpu := gpu_of(node.resources)) is not None]
    sizes = [gpu.most_nbytes for gpu in known]
    _check_trials(trials, {name: need.gpu for name, need in needs.items()}, sizes, len(with_gpu), "GPU")
    if given != "auto":
        return dict.fromkeys(needs, given)
    if not with_gpu:
        yet, or_file = "", ""
        if may_grow(nodes):
            yet, or_file = " yet", ", or the file of the cluster's launcher (`plan --cluster`, on the head for runs)"
        raise UserError(
            f"trials.gpus: auto, but no node for trials has a GPU{yet}; give a number, 0 to train on CPUs{or_file}"
        )
    if len(known) < len(with_gpu):
        raise UserError(
            "trials.gpus: auto, but the memory of the GPUs is not known (the nodes name no accelerator_type that is); "
            "give a number"
        )
    smallest = min(gpu.nbytes for gpu in known)
    at_once = {name: max(1, int(smallest * SURELY / need.gpu)) for name, need in needs.items()}
    # Ray counts in ten-thousandths and might round up, so that seven times a seventh would be more than a GPU.
    return {name: 10_000 // count / 10_000 for name, count in at_once.items()}


def _check_trials(
    trials: Sequence[TrialSpec], needs: Mapping[str, int], sizes: list[int], count: int, what: str
) -> None:
    """Whether the largest trial fits the largest of `count` nodes or GPUs, where the `sizes` of all are known."""
    if not trials or not count or len(sizes) < count:
        return
    trial, largest = max(trials, key=lambda t: needs[t.name]), max(sizes)
    if (need := needs[trial.name]) * SURELY > largest:
        raise UserError(
            f"saes: width {trial.d_sae} at {trial.site} needs {need / 2**30:.1f} GiB a trial; the largest {what} has "
            f"{largest / 2**30:.1f}: a width of about {int(trial.d_sae * largest / need):,} fits, or a smaller "
            "training.batch_size"
        )


def check_producers(sweep: Sweep, nodes: Sequence[Node], need: Memory) -> list[str]:
    """Whether a producer fits into the memory that there is. Returns what may go wrong.

    Raises:
        UserError: it does not.
    """
    here, gpus = nodes_for(PRODUCER, nodes), sweep.producers.gpus
    hosts = [int(node.resources["memory"]) for node in here if "memory" in node.resources]
    with_gpu = [node for node in here if gpus and node.resources.get("GPU")]
    # A share of a GPU is no limit: the rest is there as long as nobody uses it.
    sizes = [int(gpu.most_nbytes * max(1, gpus)) for node in with_gpu if (gpu := gpu_of(node.resources)) is not None]
    for nbytes, found, count, what, remedy in (
        (need.host, hosts, len(here), "node for them", "dataset.shuffle_tokens (a block is made in memory)"),
        (need.gpu, sizes, len(with_gpu), "GPU" if gpus <= 1 else f"set of {gpus:g} GPUs", "evaluation.batch"),
    ):
        if count and len(found) == count and nbytes * SURELY > max(found):
            raise UserError(
                f"producers: each needs {nbytes / 2**30:.1f} GiB; the largest {what} has {max(found) / 2**30:.1f}: "
                f"lower {remedy} or producers.batch, or give producers more gpus"
            )
    if 0 < gpus < 1 and sizes and len(sizes) == len(with_gpu) and need.gpu * SURELY > gpus * max(sizes):
        return [
            f"producers: each needs {need.gpu / 2**30:.1f} GiB of a GPU, more than producers.gpus: {gpus:g} of one "
            f"({gpus * max(sizes) / 2**30:.1f}); where trials fill the rest it may run out: raise producers.gpus"
        ]
    return []


def _to_ask(need: Memory, cpus: float, gpus: float, role: str, nodes: Sequence[Node]) -> int:
    """Bytes of its node's memory that a process surely needs, and so asks Ray for.

    0 where a node that it may go to does not tell its memory, or one may come that does not: Ray would never start one
    of its type for those who ask.
    """
    here = [node.like or node for node in nodes_for(role, nodes) if node.holds(cpus, gpus)]
    told = bool(here) and not may_grow(nodes) and all("memory" in node.resources for node in here)
    return int(SURELY * need.host) if told else 0


def host_memory(sweep: Sweep, nodes: Sequence[Node], trials: Sequence[TrialSpec]) -> dict[str, int]:
    """Bytes of its node's memory that each trial asks Ray for, by name.

    On CPUs what the largest needs: there a process is used again, for a trial that asks for the same.
    """
    on_gpu, some = sweep.trials.gpus != 0, 1e-4  # of a GPU, whichever its share
    asked = {
        trial.name: _to_ask(of_trial(trial, on_gpu), sweep.trials.cpus, some if on_gpu else 0, TRAINER, nodes)
        for trial in trials
    }
    return asked if on_gpu else dict.fromkeys(asked, max(asked.values(), default=0))


def producer_memory(sweep: Sweep, nodes: Sequence[Node], need: Memory) -> int:
    """Bytes of its node's memory that a producer asks Ray for, with its GPUs.

    Without a GPU none: its place is not reserved, and while it is started again a trial might take that for good.
    """
    gpus = sweep.producers.gpus
    return _to_ask(need, 0, gpus, PRODUCER, nodes) if gpus else 0


def producer_labels(
    sweep: Sweep, nodes: Sequence[Node], gpus_a_trial: float, bytes_a_trial: int, bytes_a_producer: int
) -> dict[str, str]:
    """The label selector of producers: that of their role; and not some nodes that hold a trial, where it matters.

    That is where producers might leave no room for any trial: Ray would take nodes with much memory first. As many are
    spared as they do not need. Nodes that come later are free to them; but where one that they need goes for good, and
    none comes, they wait.

    Args: as of `slots`.
    """
    gpus, count = sweep.producers.gpus, sweep.producers.count
    here, labels = nodes_for(PRODUCER, nodes), selector(PRODUCER, nodes)
    a_trial, a_producer = (sweep.trials.cpus, gpus_a_trial, bytes_a_trial), (0, gpus, bytes_a_producer)
    holding = [node for node in nodes_for(TRAINER, nodes) if node.holds(*a_trial)]

    def filled(node: Node) -> float:
        """Producers that leave no room for a trial."""
        numbers = range(1, node.holds(*a_producer) + 1 if node in here else 1)
        left = (n for n in numbers if not node.without(n * gpus, n * bytes_a_producer).holds(*a_trial))
        return next(left, math.inf)

    ids, left = [], sum(node.holds(*a_producer) for node in here) - count
    if gpus and count >= sum(map(filled, holding)):
        for node in sorted(holding, key=lambda node: node.holds(*a_producer)):
            if node.id is not None and node.holds(*a_producer) <= left:
                left -= node.holds(*a_producer)
                ids.append(node.id)
    return labels | ({ID: f"!in({','.join(ids)})"} if ids else {})


def slots(
    sweep: Sweep, nodes: Sequence[Node], gpus_a_trial: float, bytes_a_trial: int = 0, bytes_a_producer: int = 0
) -> int | None:
    """Trials at a time, beside the producers; None where the nodes for trials are still to come.

    Each producer in turn is taken to be where it leaves most room. Where Ray puts them elsewhere there is less; that it
    is none is prevented by `producer_labels` where whole nodes can be spared, else ended by trials.room_timeout_s.

    Args:
        gpus_a_trial: see `shares`.
        bytes_a_trial: see `host_memory`.
        bytes_a_producer: see `producer_memory`.
    Raises:
        UserError: there is no room for a trial, or for the producers.
    """
    trials, producers = sweep.trials, sweep.producers
    a_trial, a_producer = (trials.cpus, gpus_a_trial, bytes_a_trial), (0, producers.gpus, bytes_a_producer)
    for key, role, (cpus, gpus, nbytes) in (("trials", TRAINER, a_trial), ("producers", PRODUCER, a_producer)):
        of_role = nodes_for(role, nodes)
        fits = any(node.holds(cpus, gpus, nbytes) for node in of_role)
        if (cpus or gpus) and not fits and not awaited(role, nodes):
            largest = max((n.resources for n in of_role), key=lambda r: (r.get("GPU", 0), r.get("CPU", 0)), default={})
            memory = f" and {largest.get('memory', 0) / 2**30:.1f} GiB" if nbytes else ""
            on_demand = "; if larger ones are started on demand, have one started first (min_workers: 1)"
            raise UserError(
                f"{key}: each needs {f'cpus: {cpus} and ' if cpus else ''}gpus: {gpus:g}{_and_memory(nbytes)} on one "
                f"node; the largest has {largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs{memory}"
                f"{on_demand if may_grow(nodes) else ''}"
            )
    for_producers = nodes_for(PRODUCER, nodes)
    roles_of_trials = {node.role for node in nodes_for(TRAINER, nodes)}

    def trials_at(node: Node) -> int:
        return node.holds(*a_trial) if node.role in roles_of_trials else 0

    def beside_a_producer(node: Node) -> Node:
        return node.without(producers.gpus, bytes_a_producer)

    left, waiting = list(nodes), producers.count if producers.gpus else 0
    free = [i for i, node in enumerate(nodes) if node in for_producers]
    while waiting and (fitting := [i for i in free if left[i].holds(*a_producer)]):
        lost = {i: trials_at(left[i]) - trials_at(beside_a_producer(left[i])) for i in fitting}
        best = min(fitting, key=lambda i: (lost[i], -left[i].holds(*a_producer)))
        left[best] = beside_a_producer(left[best])
        waiting -= 1
    found = sum(map(trials_at, left))
    if waiting and awaited(PRODUCER, nodes):
        waiting = 0
    if not found and not waiting and awaited(TRAINER, nodes):
        return None
    if waiting or not found:
        there, theirs = (sum(n.resources.get("GPU", 0) for n in of) for of in (nodes, for_producers))
        raise UserError(
            f"producers.gpus: {producers.gpus:g}{_and_memory(bytes_a_producer)} for each of {producers.count} "
            f"producers, and {gpus_a_trial:g}{_and_memory(bytes_a_trial)} for a trial, but the cluster has {there:g} "
            f"GPUs, {theirs:g} of them where producers may go"
        )
    return min(found, trials.max_concurrent or found)


def _and_memory(nbytes: int) -> str:
    return f" and {nbytes / 2**30:.1f} GiB of memory" if nbytes else ""


def budget(sweep: Sweep, nodes: Sequence[Node], block_bytes: int, total_bytes: int, sites: int) -> int:
    """Bytes of activations to keep.

    Args:
        block_bytes: of the largest block; total_bytes: of all, at all sites.
    Raises:
        UserError: a block does not fit.
    """
    given = sweep.producers.budget_gib
    store = sum(node.resources.get("object_store_memory", 0) for node in nodes if not node.to_come)
    found = int(given * 2**30) if given is not None else min(total_bytes, int(OBJECT_STORE_SHARE * store))
    if block_bytes and found < block_bytes:
        rows = sweep.block_contexts * sweep.model.context_size
        at_a_time = sites * found // block_bytes
        fewer = f"sweep {at_a_time} of the sites at a time" if at_a_time else "sweep fewer sites at a time"
        raise UserError(
            f"dataset.shuffle_tokens: a block at {sites} sites is {block_bytes / 2**30:.2f} GiB, more than the "
            f"{found / 2**30:.2f} GiB for activations; {rows * found // block_bytes:,} tokens a block would fit; or "
            f"{fewer}, or raise producers.budget_gib"
        )
    return found
