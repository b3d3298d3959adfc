"""Whether a sweep fits a cluster: where trials and producers go, how many trials at a time, what is too small."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from gsae_ray.accelerators import gpu_of
from gsae_ray.errors import UserError, first_line
from gsae_ray.memory import SURELY, Memory, of_trial
from gsae_ray.sweep import Sweep
from gsae_ray.trial import TrialSpec

ROLE, PRODUCER, TRAINER = "gsae-role", "producer", "trainer"
"""The label of a node, and its values."""
_OTHER = {PRODUCER: TRAINER, TRAINER: PRODUCER}
KIND = "ray.io/node-group"
"""Ray's label of a node that a launcher or an autoscaler has started: its node type."""

MAX_WORKERS = 2
"""Of a launcher's file that does not say, in Ray."""
OBJECT_STORE_SHARE = 0.6
"""Of the cluster's object store, for activations; the rest is headroom for readers that still hold a block."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A node, or one that the cluster's autoscaler may add."""

    resources: Mapping[str, float]
    """CPU, GPU, object_store_memory (bytes), …, as Ray counts them."""
    role: str | None = None
    to_come: bool = False
    kind: str | None = None
    """Its type among those of the cluster's launcher or autoscaler, if that started it."""
    listed: bool = False
    """Whether that launcher's file is here, so that all nodes that may come are known."""

    @classmethod
    def alive(cls, resources: Mapping[str, float], labels: Mapping[str, str]) -> Node:
        """One that is there, with Ray's labels."""
        return cls(resources, labels.get(ROLE), kind=labels.get(KIND))

    def holds(self, cpus: float, gpus: float, nbytes: int = 0) -> int:
        """How often there is room for so many CPUs and GPUs, and bytes of memory where it is known."""
        needs = {"CPU": cpus, "GPU": gpus, "memory": nbytes if "memory" in self.resources else 0}
        # A little more, since thirds of a GPU are whole ones to Ray.
        return min((int(self.resources.get(k, 0) / n + 1e-6) for k, n in needs.items() if n), default=0)


def described(file: Path) -> list[Node]:
    """The nodes that a cluster launcher's file allows, at most.

    Where its types allow more than `max_workers` together, each has its `min_workers`, and the rest in turn.

    Raises:
        UserError: it is no such file, or its node types have no resources.
    """
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        limit = int(config.get("max_workers", MAX_WORKERS))
        heads, workers = [], []
        for name, kind in config["available_node_types"].items():
            role = (kind.get("labels") or {}).get(ROLE)
            node = Node(dict(kind["resources"]), role, to_come=True, kind=name, listed=True)
            if name == config.get("head_node_type"):
                heads.append(node)
            else:
                least, most = int(kind.get("min_workers", 0)), min(limit, int(kind.get("max_workers", limit)))
                workers += [(number >= least, number, node) for number in range(most)]
        workers.sort(key=lambda worker: worker[:2])
        return heads + [node for *_, node in workers[:limit]]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} is not a cluster launcher's file whose available_node_types have resources: {first_line(error)}"
        ) from error


def at_largest(alive: Sequence[Node], allowed: Sequence[Node]) -> list[Node]:
    """The nodes of a cluster that are there, and of those that its launcher allows the ones that are not yet.

    They are those that are there where the launcher has started none of them: its file is another cluster's.
    """
    types = {node.kind: node for node in allowed}
    if not any(node.kind in types for node in alive):
        return list(alive)
    started = Counter(node.kind for node in alive)
    found = [_listed(node, types[node.kind]) if node.kind in types else node for node in alive]
    left = len(allowed) - sum(started[kind] for kind in types)
    for node in allowed:
        if started[node.kind]:
            started[node.kind] -= 1
        elif left > 0:
            left -= 1
            found.append(node)
    return found


def _listed(node: Node, like: Node) -> Node:
    """A node whose type is described. It tells its memory only if that does: one that follows it will not else."""
    resources = {key: n for key, n in node.resources.items() if key != "memory" or key in like.resources}
    return dataclasses.replace(node, resources=resources, listed=True)


def may_grow(nodes: Sequence[Node]) -> bool:
    """Whether nodes may come of which we know nothing: something starts nodes here, and its file is not here."""
    return any(node.kind is not None and not node.listed for node in nodes)


def awaited(role: str, nodes: Sequence[Node]) -> bool:
    """Whether nodes of this role may come, for all that is known: the other role has its own, and this one has none."""
    there = {node.role for node in nodes}
    return role not in there and _OTHER[role] in there and may_grow(nodes)


def selector(role: str, nodes: Sequence[Node]) -> dict[str, str]:
    """The label selector of a role: its own nodes; else, where only the other role has nodes, not those."""
    there = {node.role for node in nodes}
    if role in there:
        return {ROLE: role}
    return {ROLE: f"!{_OTHER[role]}"} if _OTHER[role] in there else {}


def nodes_for(role: str, nodes: Sequence[Node]) -> list[Node]:
    """Those that a role's processes may go to."""
    wanted = selector(role, nodes).get(ROLE, "!")
    if wanted.startswith("!"):
        return [node for node in nodes if node.role is None or node.role != wanted[1:]]
    return [node for node in nodes if node.role == wanted]


def shares(sweep: Sweep, nodes: Sequence[Node], trials: Sequence[TrialSpec]) -> dict[str, float]:
    """GPUs of each trial, by name: what the sweep says, or with `auto` the part of a GPU whose memory it needs.

    Of GPUs that differ the smallest decides, since a trial does not know which it gets.

    Raises:
        UserError: a trial needs more memory than there is, or with `auto` that of the GPUs is not known.
    """
    given, here = sweep.trials.gpus, nodes_for(TRAINER, nodes)
    needs = {trial.name: of_trial(trial, given != 0) for trial in trials}
    hosts = [int(node.resources["memory"]) for node in here if "memory" in node.resources]
    _check_trials(trials, {name: need.host for name, need in needs.items()}, hosts, len(here), "node for trials")
    if given == 0:
        return dict.fromkeys(needs, 0.0)
    with_gpu = [node for node in here if node.resources.get("GPU")]
    known = [gpu for node in with_gpu if (gpu := gpu_of(node.resources)) is not None]
    sizes = [gpu.most_nbytes for gpu in known]
    _check_trials(trials, {name: need.gpu for name, need in needs.items()}, sizes, len(with_gpu), "GPU")
    if given != "auto":
        return dict.fromkeys(needs, given)
    if not with_gpu:
        raise UserError(
            f"trials.gpus: auto, but no node for trials has a GPU{' yet' * awaited(TRAINER, nodes)}; give a number, "
            "0 to train on CPUs"
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


def _to_ask(need: Memory, role: str, nodes: Sequence[Node]) -> int:
    """Bytes of its node's memory that a process surely needs, and so asks Ray for.

    0 where a node of its role does not tell its memory, or may come without telling: Ray would never start one of its
    type for those who ask.
    """
    here = nodes_for(role, nodes)
    told = bool(here) and not may_grow(nodes) and all("memory" in node.resources for node in here)
    return int(SURELY * need.host) if told else 0


def host_memory(sweep: Sweep, nodes: Sequence[Node], trials: Sequence[TrialSpec]) -> dict[str, int]:
    """Bytes of its node's memory that each trial asks Ray for, by name.

    On CPUs what the largest needs: there a process is used again, for a trial that asks for the same.
    """
    on_gpu = sweep.trials.gpus != 0
    asked = {trial.name: _to_ask(of_trial(trial, on_gpu), TRAINER, nodes) for trial in trials}
    return asked if on_gpu else dict.fromkeys(asked, max(asked.values(), default=0))


def producer_memory(sweep: Sweep, nodes: Sequence[Node], need: Memory) -> int:
    """Bytes of its node's memory that a producer asks Ray for, with its GPUs.

    Without a GPU none: its place is not reserved, and while it is started again a trial might take that for good.
    """
    return _to_ask(need, PRODUCER, nodes) if sweep.producers.gpus else 0


def slots(
    sweep: Sweep, nodes: Sequence[Node], gpus_a_trial: float, bytes_a_trial: int = 0, bytes_a_producer: int = 0
) -> int | None:
    """Trials at a time, beside the producers; None where the nodes for trials are still to come.

    Where Ray may put producers elsewhere there may be fewer: it is the best case that counts.

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
            raise UserError(
                f"{key}: each needs {f'cpus: {cpus} and ' if cpus else ''}gpus: {gpus:g}{_and_memory(nbytes)} on one "
                f"node; the largest has {largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs{memory}"
            )
    for_producers, for_trials = nodes_for(PRODUCER, nodes), nodes_for(TRAINER, nodes)
    waiting, found = producers.count if producers.gpus else 0, 0
    for node in sorted(nodes, key=lambda node: node in for_trials and node.holds(*a_trial) > 0):
        here = min(waiting, node.holds(*a_producer)) if waiting and node in for_producers else 0
        waiting -= here
        if node in for_trials:
            taken = {"GPU": here * producers.gpus, "memory": here * bytes_a_producer}
            left = {key: n - taken.get(key, 0) for key, n in node.resources.items()}
            found += dataclasses.replace(node, resources=left).holds(*a_trial)
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
