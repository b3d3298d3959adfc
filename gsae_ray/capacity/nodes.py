"""The nodes of a cluster, and those that its launcher may start: their resources, roles and types."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from gsae_ray.errors import UserError, first_line, shown

ROLE, PRODUCER, TRAINER = "gsae-role", "producer", "trainer"
"""The label of a node, and its values."""
_OTHER = {PRODUCER: TRAINER, TRAINER: PRODUCER}
KIND, ID = "ray.io/node-group", "ray.io/node-id"
"""Ray's labels: of a node that a launcher or an autoscaler has started its node type, and of every node its id."""
MAX_WORKERS = 2
"""Of a launcher's file that does not say, in Ray."""
MAX_NODES = 10_000
"""Of a type: each is an object here."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A node, or one that the cluster's launcher may start."""

    resources: Mapping[str, float]
    """CPU, GPU, object_store_memory (bytes), …, as Ray counts them."""
    role: str | None = None
    to_come: bool = False
    kind: str | None = None
    """Its type among those of the cluster's launcher or autoscaler, if that started it."""
    id: str | None = None
    """Of one that is there."""
    like: Node | None = None
    """Of one that is there: how its launcher's file, if that is here, describes its type, so others that follow it."""

    @classmethod
    def alive(cls, resources: Mapping[str, float], labels: Mapping[str, str]) -> Node:
        """One that is there, with Ray's labels."""
        return cls(resources, labels.get(ROLE), kind=labels.get(KIND), id=labels.get(ID))

    def holds(self, cpus: float, gpus: float, nbytes: int = 0) -> int:
        """How often there is room for so many CPUs and GPUs, and bytes of memory where it is known."""
        needs = {"CPU": cpus, "GPU": gpus, "memory": nbytes if "memory" in self.resources else 0}
        # A little more, since thirds of a GPU are whole ones to Ray.
        return min((int(self.resources.get(k, 0) / n + 1e-6) for k, n in needs.items() if n), default=0)

    def without(self, gpus: float, nbytes: int) -> Node:
        """What is left beside a process that takes so much."""
        taken = {"GPU": gpus, "memory": nbytes}
        return dataclasses.replace(self, resources={k: n - taken.get(k, 0) for k, n in self.resources.items()})


@dataclasses.dataclass(frozen=True)
class Launcher:
    """What a cluster launcher's file allows."""

    nodes: tuple[Node, ...]
    """The head, and of each type of workers as many as it may have: those that are always there, then types in turn."""
    head: str | None
    """The head's type."""
    max_workers: int
    """Of all types together."""

    @classmethod
    def read(cls, file: Path) -> Launcher:
        """
        Raises:
            UserError: it is no such file, or its node types have no resources.
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
        """Whether it has started any of these; else it is another cluster's."""
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
    """Whether nodes may come of which we know nothing: something starts nodes here, and its file is not here."""
    return any(node.kind is not None and not node.to_come and node.like is None for node in nodes)


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
