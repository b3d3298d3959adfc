"""The nodes of a cluster, and those that its launcher may start: their resources, roles and types."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from gsae_ray.errors import UserError, first_line, shown

ROLE = "gsae-role"
"""The label that says what a node is for: `producer` or `trainer`."""
PRODUCER, TRAINER = "producer", "trainer"
_OTHER = {PRODUCER: TRAINER, TRAINER: PRODUCER}
KIND = "ray.io/node-group"
"""Ray's label of nodes that a launcher or an autoscaler has started: their node type."""
MAX_WORKERS = 2
"""Ray's default for `max_workers` of a launcher's file."""
MAX_NODES = 10_000
"""The most nodes of a type that are taken: each is an object here."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the cluster, or one that the cluster's launcher may start."""

    resources: Mapping[str, float]
    """CPU, GPU, object_store_memory (bytes), …, as Ray counts them."""
    role: str | None = None
    to_come: bool = False
    """Whether it is one that may be started."""
    kind: str | None = None
    """Its node type, if the cluster's launcher or autoscaler started it."""
    like: Node | None = None
    """For a node that is there: its type as the launcher's file describes it, where that file is known. Later nodes of
    the type will be so."""

    @classmethod
    def alive(cls, resources: Mapping[str, float], labels: Mapping[str, str]) -> Node:
        """A node that is there, with its labels in Ray."""
        return cls(resources, labels.get(ROLE), kind=labels.get(KIND))

    def holds(self, cpus: float, gpus: float, nbytes: int = 0) -> int:
        """How many times so many CPUs and GPUs fit, and bytes of memory where the node tells its own."""
        needs = {"CPU": cpus, "GPU": gpus, "memory": nbytes if "memory" in self.resources else 0}
        # A little more, since thirds of a GPU are whole ones to Ray.
        return min((int(self.resources.get(k, 0) / n + 1e-6) for k, n in needs.items() if n), default=0)

    def without(self, gpus: float, nbytes: int) -> Node:
        """The node with what is left beside a process that takes so much."""
        taken = {"GPU": gpus, "memory": nbytes}
        return dataclasses.replace(self, resources={k: n - taken.get(k, 0) for k, n in self.resources.items()})


@dataclasses.dataclass(frozen=True)
class Launcher:
    """The nodes that the file of a cluster's launcher (`ray up`) allows."""

    nodes: tuple[Node, ...]
    """The head, and of each type of workers as many as it may have: those that are always there, then types in turn."""
    head: str | None
    """The head's type."""
    max_workers: int
    """The most workers, of all types together."""

    @classmethod
    def read(cls, file: Path) -> Launcher:
        """Read a launcher's file.

        Raises:
            UserError: it is not such a file, or its node types have no resources.
        """
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
            limit, head = int(config.get("max_workers", MAX_WORKERS)), config.get("head_node_type")
            heads, workers = [], []
            for name, kind in config["available_node_types"].items():
                role = (kind.get("labels") or {}).get(ROLE)
                node = Node(dict(kind["resources"]), role, to_come=True, kind=name)
                if name == head:
                    heads.append(node)
                else:
                    least, most = int(kind.get("min_workers", 0)), min(limit, int(kind.get("max_workers", limit)))
                    if most > MAX_NODES:
                        raise ValueError(f"max_workers: {most:,} of {name}; at most {MAX_NODES:,}")
                    workers += [(number >= least, number, node) for number in range(most)]
            workers.sort(key=lambda worker: worker[:2])
            return cls((*heads, *(node for *_, node in workers)), head, limit)
        # On odd text YAML's own constructors raise anything of these; .inf is an overflow.
        except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise cls._not_a_launchers(file, first_line(error)) from error
        except RecursionError as error:
            raise cls._not_a_launchers(file, "it is nested too deep") from error

    @staticmethod
    def _not_a_launchers(file: Path, reason: str) -> UserError:
        return UserError(
            f"{file} is not a cluster launcher's file whose available_node_types have resources: "
            f"{shown(reason, quoted=False)}"
        )

    def started(self, alive: Sequence[Node]) -> bool:
        """Whether one of these nodes is of a type of this file; else the file is another cluster's."""
        return bool({node.kind for node in self.nodes} & {node.kind for node in alive})

    def at_largest(self, alive: Sequence[Node] = ()) -> list[Node]:
        """The nodes of the cluster that are there, and those that the launcher may start beside them.

        Where types allow more than `max_workers` together, each has its `min_workers`, and the rest in turn.
        """
        types = {node.kind: node for node in self.nodes}
        found = [dataclasses.replace(node, like=types.get(node.kind)) for node in alive]
        started = Counter(node.kind for node in alive)
        left = self.max_workers - sum(started[kind] for kind in types if kind != self.head)
        for node in self.nodes:
            if started[node.kind]:
                started[node.kind] -= 1
            elif node.kind == self.head:
                found.append(node)
            elif left > 0:
                left -= 1
                found.append(node)
        return found


def may_grow(nodes: Sequence[Node]) -> bool:
    """Whether unknown nodes may come: something has started nodes here, and its file is not known."""
    return any(node.kind is not None and not node.to_come and node.like is None for node in nodes)


def awaited(role: str, nodes: Sequence[Node]) -> bool:
    """Whether nodes of this role are probably to come: the other role has nodes of its own, this one has none yet."""
    there = {node.role for node in nodes}
    return role not in there and _OTHER[role] in there and may_grow(nodes)


def selector(role: str, nodes: Sequence[Node]) -> dict[str, str]:
    """Ray's label selector for a role's processes: its own nodes, if there are any; else not the other role's."""
    there = {node.role for node in nodes}
    if role in there:
        return {ROLE: role}
    return {ROLE: f"!{_OTHER[role]}"} if _OTHER[role] in there else {}


def nodes_for(role: str, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that a role's processes may go to."""
    wanted = selector(role, nodes).get(ROLE, "!")
    if wanted.startswith("!"):
        return [node for node in nodes if node.role is None or node.role != wanted[1:]]
    return [node for node in nodes if node.role == wanted]
