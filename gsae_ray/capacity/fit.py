"""Whether a sweep fits a cluster: what its processes ask Ray for, what is refused at once, and what is predicted.

Refused is what certainly cannot run. Where Ray puts the processes, and whether other sweeps leave it enough, shows when
it runs: producers wait for their GPUs, and `trials.room_timeout_s` ends a sweep whose trials cannot start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from gsae_ray.capacity.gpus import GPU, gpu_of
from gsae_ray.capacity.memory import MARGIN, Memory, trial_memory
from gsae_ray.capacity.nodes import PRODUCER, TRAINER, Node, awaited, may_grow, nodes_for
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError

OBJECT_STORE_SHARE = 0.6
"""Part of the cluster's object store for activations; the rest is headroom for readers that still hold a block."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a process asks Ray for, all of it on one node."""

    cpus: float = 0
    gpus: float = 0
    memory: int = 0
    """Bytes of the node's memory; 0 to ask for none."""

    def on(self, node: Node) -> int:
        """How many such processes a node holds."""
        return node.holds(self.cpus, self.gpus, self.memory)

    def __str__(self) -> str:
        cpus = f"cpus: {self.cpus:g} and " if self.cpus else ""
        return f"{cpus}gpus: {self.gpus:g}{self.and_memory}"

    @property
    def and_memory(self) -> str:
        """The memory in words, after something else."""
        return f" and {self.memory / 2**30:.1f} GiB of memory" if self.memory else ""

    def to_ray(self) -> dict[str, float]:
        """As a bundle of Ray's: memory of which none is asked for is left out."""
        return {"CPU": float(self.cpus), "GPU": self.gpus} | ({"memory": float(self.memory)} if self.memory else {})


# ---- what is asked for ----------------------------------------------------------------------------------------------


def trial_requests(sweep: Sweep, nodes: Sequence[Node], trials: Sequence[TrialSpec]) -> dict[str, Request]:
    """What each trial asks for, by its name.

    On CPUs all ask for the memory that the largest needs: there a process is used again, for a trial that asks for the
    same.

    Raises:
        UserError: a trial needs more memory than there is, or with `trials.gpus: auto` that of the GPUs is not known.
    """
    gpus = gpu_shares(sweep, nodes, trials)
    on_gpu, some = sweep.trials.gpus != 0, 1e-4  # of a GPU, whichever its share
    memory = {
        trial.name: _memory_to_ask(
            trial_memory(trial, on_gpu), Request(sweep.trials.cpus, some if on_gpu else 0), TRAINER, nodes
        )
        for trial in trials
    }
    if not on_gpu:
        memory = dict.fromkeys(memory, max(memory.values(), default=0))
    return {name: Request(sweep.trials.cpus, gpus[name], memory[name]) for name in memory}


def producer_request(sweep: Sweep, nodes: Sequence[Node], need: Memory) -> Request:
    """What each producer asks for: its GPUs, and memory beside them.

    Without a GPU nothing: its place is not reserved, and while it is started again a trial might take that for good.
    """
    gpus = sweep.producers.gpus
    return Request(gpus=gpus, memory=_memory_to_ask(need, Request(gpus=gpus), PRODUCER, nodes)) if gpus else Request()


def _memory_to_ask(need: Memory, besides: Request, role: str, nodes: Sequence[Node]) -> int:
    """Bytes of its node's memory that a process certainly needs, and so asks Ray for.

    0 where a node that it may go to does not tell its memory, or one may come that does not: Ray would never start one
    of its type for those who ask.
    """
    here = [node.like or node for node in nodes_for(role, nodes) if besides.on(node)]
    told = bool(here) and not may_grow(nodes) and all("memory" in node.resources for node in here)
    return int(MARGIN * need.host) if told else 0


def gpu_shares(sweep: Sweep, nodes: Sequence[Node], trials: Sequence[TrialSpec]) -> dict[str, float]:
    """GPUs of each trial, by its name: what the sweep says, or with `auto` the part of a GPU whose memory it needs.

    Of GPUs that differ the smallest decides, since a trial does not know which it gets.

    Raises:
        UserError: a trial needs more memory than there is, or products that a GPU does not have, or with `auto` the
            memory of the GPUs is not known.
    """
    given, here = sweep.trials.gpus, nodes_for(TRAINER, nodes)
    needs = {trial.name: trial_memory(trial, given != 0) for trial in trials}
    with_cpus = [node for node in here if node.holds(sweep.trials.cpus, 0)]
    hosts = [int(node.resources["memory"]) for node in with_cpus if "memory" in node.resources]
    _check_trials(trials, {name: need.host for name, need in needs.items()}, hosts, len(with_cpus), "node for trials")
    if given == 0:
        return dict.fromkeys(needs, 0.0)
    with_gpu = [node for node in here if node.resources.get("GPU")]
    known = [gpu for node in with_gpu if (gpu := gpu_of(node.resources)) is not None]
    _check_precision(trials, known)
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
    at_once = {name: max(1, int(smallest * MARGIN / need.gpu)) for name, need in needs.items()}
    # Ray counts in ten-thousandths and might round up, so that seven times a seventh would be more than a GPU.
    return {name: 10_000 // count / 10_000 for name, count in at_once.items()}


def largest(sweep: Sweep, requests: Iterable[Request]) -> Request:
    """The request that is enough for each of some trials, of which there may be none."""
    found = list(requests)
    return Request(
        sweep.trials.cpus,
        max((request.gpus for request in found), default=0),
        max((request.memory for request in found), default=0),
    )


# ---- what certainly does not fit ------------------------------------------------------------------------------------


def _check_trials(
    trials: Sequence[TrialSpec], needs: Mapping[str, int], sizes: list[int], count: int, what: str
) -> None:
    """Checks that the largest trial fits the largest of `count` nodes or GPUs, where the `sizes` of all are known."""
    if not trials or not count or len(sizes) < count:
        return
    trial, largest = max(trials, key=lambda t: needs[t.name]), max(sizes)
    if (need := needs[trial.name]) * MARGIN > largest:
        raise UserError(
            f"saes: width {trial.d_sae} at {trial.site} needs {need / 2**30:.1f} GiB a trial; the largest {what} has "
            f"{largest / 2**30:.1f}: a width of about {int(trial.d_sae * largest / need):,} fits, or a smaller "
            "training.batch_size"
        )


def _check_precision(trials: Sequence[TrialSpec], gpus: Sequence[GPU]) -> None:
    """Checks that all GPUs that are known have the products of all trials, which do not know what they get."""
    precisions = {trial.training.precision for trial in trials} - {"float32"}
    if precisions and not all(gpu.ampere for gpu in gpus):
        raise UserError(
            f"training.precision: {sorted(precisions)[0]} needs GPUs of compute capability 8.0 or later, and a node "
            "for trials has older ones; precision: float32 runs there"
        )


def check_producers(sweep: Sweep, nodes: Sequence[Node], need: Memory) -> list[str]:
    """Checks that a producer fits into the memory that there is. Returns what may go wrong, a line each.

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
        if count and len(found) == count and nbytes * MARGIN > max(found):
            raise UserError(
                f"producers: each needs {nbytes / 2**30:.1f} GiB; the largest {what} has {max(found) / 2**30:.1f}: "
                f"lower {remedy} or producers.batch, or give producers more gpus"
            )
    if 0 < gpus < 1 and sizes and len(sizes) == len(with_gpu) and need.gpu * MARGIN > gpus * max(sizes):
        return [
            f"producers: each needs {need.gpu / 2**30:.1f} GiB of a GPU, more than producers.gpus: {gpus:g} of one "
            f"({gpus * max(sizes) / 2**30:.1f}); where trials fill the rest it may run out: raise producers.gpus"
        ]
    return []


def check_requests(sweep: Sweep, nodes: Sequence[Node], trial: Request, producer: Request) -> list[str]:
    """Checks that some node holds a trial, that some hold all producers, and that there are GPUs for all of them.

    Returns:
        What is still awaited, a line each.

    Raises:
        UserError: something does not fit, and no nodes are awaited that might hold it.
    """
    notices = []
    for key, role, request in (("trials", TRAINER, trial), ("producers", PRODUCER, producer)):
        of_role = nodes_for(role, nodes)
        if not (request.cpus or request.gpus) or any(map(request.on, of_role)):
            continue
        if not awaited(role, nodes):
            largest = max((n.resources for n in of_role), key=lambda r: (r.get("GPU", 0), r.get("CPU", 0)), default={})
            memory = f" and {largest.get('memory', 0) / 2**30:.1f} GiB" if request.memory else ""
            on_demand = "; if larger ones are started on demand, have one started first (min_workers: 1)"
            raise UserError(
                f"{key}: each needs {request} on one node; the largest has {largest.get('CPU', 0):g} CPUs and "
                f"{largest.get('GPU', 0):g} GPUs{memory}{on_demand if may_grow(nodes) else ''}"
            )
        if role == TRAINER:  # producers that wait are told of while they wait
            notices.append("no node for trials is there yet; they wait until the cluster has started one")
    wanted = sweep.producers.count * producer.gpus + trial.gpus
    places = sum(map(producer.on, nodes_for(PRODUCER, nodes)))
    if producer.gpus and not may_grow(nodes) and (places < sweep.producers.count or wanted > _gpus(nodes) + 1e-6):
        raise _no_place(sweep, nodes, trial, producer)
    return notices


def _gpus(nodes: Sequence[Node]) -> float:
    return sum(node.resources.get("GPU", 0) for node in nodes)


def _no_place(sweep: Sweep, nodes: Sequence[Node], trial: Request, producer: Request) -> UserError:
    return UserError(
        f"producers.gpus: {producer.gpus:g}{producer.and_memory} for each of {sweep.producers.count} producers, and "
        f"{trial.gpus:g}{trial.and_memory} for a trial, but the cluster has {_gpus(nodes):g} GPUs, "
        f"{_gpus(nodes_for(PRODUCER, nodes)):g} of them where producers may go"
    )


def budget(sweep: Sweep, nodes: Sequence[Node], block_bytes: int, total_bytes: int, sites: int) -> int:
    """Bytes of activations that the store keeps: what the sweep says, else a share of the object store.

    Args:
        sweep: the sweep.
        nodes: the nodes of the cluster.
        block_bytes: size of the largest block at all sites.
        total_bytes: size of all blocks at all sites.
        sites: how many sites there are.

    Raises:
        UserError: a block does not fit.
    """
    given = sweep.producers.budget_gib
    store = sum(node.resources.get("object_store_memory", 0) for node in nodes if not node.to_come)
    found = int(given * 2**30) if given is not None else min(total_bytes, int(OBJECT_STORE_SHARE * store))
    if block_bytes and found < block_bytes:
        at_a_time = sites * found // block_bytes
        fewer = f"sweep {at_a_time} of the sites at a time" if at_a_time else "sweep fewer sites at a time"
        fitting = sweep.rows_a_block * found // block_bytes
        raise UserError(
            f"dataset.shuffle_tokens: a block at {sites} sites is {block_bytes / 2**30:.2f} GiB, more than the "
            f"{found / 2**30:.2f} GiB for activations; {fitting:,} tokens a block would fit; or "
            f"{fewer}, or raise producers.budget_gib"
        )
    return found


# ---- what is predicted, for `gsae-ray plan` -------------------------------------------------------------------------


def trials_at_once(sweep: Sweep, nodes: Sequence[Node], trial: Request, producer: Request) -> int | None:
    """Predicts how many trials run at a time, beside the producers; None where the nodes for trials are still to come.

    Each producer in turn is taken to be where it costs the fewest trials; where Ray puts them elsewhere, fewer run.

    Raises:
        UserError: no trial can run, or not all producers.
    """
    check_requests(sweep, nodes, trial, producer)
    for_trials, for_producers = nodes_for(TRAINER, nodes), nodes_for(PRODUCER, nodes)
    roles = {node.role for node in for_trials}

    def held(node: Node) -> int:
        return trial.on(node) if node.role in roles else 0

    def beside(node: Node) -> Node:
        return node.without(producer.gpus, producer.memory)

    left = list(nodes)
    for _ in range(sweep.producers.count if producer.gpus else 0):
        places = [i for i, node in enumerate(nodes) if node in for_producers and producer.on(left[i])]
        if not places:  # the others wait for nodes that are to come
            break
        best = min(places, key=lambda i: (held(left[i]) - held(beside(left[i])), -producer.on(left[i])))
        left[best] = beside(left[best])
    found = sum(map(held, left))
    if not found:
        if awaited(TRAINER, nodes):
            return None
        raise _no_place(sweep, nodes, trial, producer)
    return min(found, sweep.trials.max_concurrent or found)
