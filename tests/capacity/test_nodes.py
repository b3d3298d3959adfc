"""The nodes of a cluster and those that its launcher may start, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsae_ray.capacity.nodes import KIND, PRODUCER, ROLE, TRAINER, Launcher, Node, may_grow, nodes_for, selector
from gsae_ray.errors import UserError

HEAD = Node({"CPU": 0, "object_store_memory": 10 * 2**30})
PRODUCERS = Node({"CPU": 8, "GPU": 1, "object_store_memory": 20 * 2**30}, PRODUCER)
TRAINERS = Node({"CPU": 16, "GPU": 1, "object_store_memory": 30 * 2**30}, TRAINER)
PLAIN = Node({"CPU": 16, "GPU": 2})
LATER = Node({"CPU": 32, "GPU": 4}, to_come=True)


@pytest.mark.parametrize(
    ("nodes", "of_producers", "of_trials"),
    [
        ([HEAD, PLAIN], {}, {}),
        ([HEAD, PRODUCERS, TRAINERS], {"gsae-role": "producer"}, {"gsae-role": "trainer"}),
        ([HEAD, PRODUCERS, LATER], {"gsae-role": "producer"}, {"gsae-role": "!producer"}),
        ([HEAD, TRAINERS], {"gsae-role": "!trainer"}, {"gsae-role": "trainer"}),
    ],
)
def test_roles_are_the_labels_where_there_are_any(
    nodes: list[Node], of_producers: dict[str, str], of_trials: dict[str, str]
) -> None:
    assert selector(PRODUCER, nodes) == of_producers
    assert selector(TRAINER, nodes) == of_trials


def test_nodes_of_a_role() -> None:
    assert nodes_for(PRODUCER, [HEAD, PRODUCERS, TRAINERS]) == [PRODUCERS]
    assert nodes_for(TRAINER, [HEAD, PRODUCERS, LATER]) == [HEAD, LATER]
    assert nodes_for(TRAINER, [HEAD, PLAIN]) == [HEAD, PLAIN]


def launcher(tmp_path: Path, types: str, rest: str = "") -> Launcher:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"{rest}head_node_type: head\navailable_node_types: {{{types}}}\n")
    return Launcher.read(file)


def alive(kind: str | None) -> Node:
    return Node.alive({"CPU": 8}, {KIND: kind} if kind else {})


def test_a_node_that_has_been_started_counts_once(tmp_path: Path) -> None:
    types = (
        "head: {resources: {CPU: 0}}, producer: {resources: {CPU: 8}, max_workers: 2, labels: {gsae-role: producer}}"
    )
    allowed = launcher(tmp_path, types + ", trainer: {resources: {CPU: 8}, max_workers: 2}", "max_workers: 9\n")
    by_hand = alive(None)
    there = [alive("head"), Node.alive({"CPU": 8}, {KIND: "producer", ROLE: PRODUCER}), by_hand]
    found = allowed.at_largest(there)
    assert [(node.kind, node.to_come, node.role) for node in found] == [
        ("head", False, None),
        ("producer", False, PRODUCER),
        (None, False, None),
        ("trainer", True, None),
        ("producer", True, PRODUCER),
        ("trainer", True, None),
    ]
    assert [node.like and node.like.kind for node in found[:3]] == ["head", "producer", None]
    assert may_grow(there) and not may_grow(found)
    assert allowed.started(there) and not allowed.started([by_hand])


def test_a_launchers_limits_are_rays(tmp_path: Path) -> None:
    types = "head: {resources: {}}, a: {resources: {CPU: 1}, min_workers: 1}, b: {resources: {CPU: 2}, max_workers: 9}"
    three = launcher(tmp_path, types, "max_workers: 3\n")
    assert [node.kind for node in three.at_largest()] == ["head", "a", "b", "a"]
    assert [node.kind for node in launcher(tmp_path, types).at_largest()] == ["head", "a", "b"]
    there = [alive("head"), alive("b"), alive("b")]  # which count
    assert [node.kind for node in three.at_largest(there)] == ["head", "b", "b", "a"]
    assert three.at_largest([*there, alive("b")])[4:] == []


def test_a_type_is_known_however_few_may_come(tmp_path: Path) -> None:
    types = "head: {resources: {}}, a: {resources: {CPU: 1}}, b: {resources: {CPU: 2}}, c: {resources: {CPU: 3}}"
    found = launcher(tmp_path, types, "max_workers: 2\n").at_largest([alive("head"), alive("c")])
    assert [node.kind for node in found] == ["head", "c", "a"]
    assert not may_grow(found)


@pytest.mark.parametrize(
    "text",
    [
        "provider: {type: local}\n",
        "max_workers: 1000000000000\navailable_node_types: {a: {resources: {CPU: 1}}}\n",  # each would be an object
        "max_workers: .inf\navailable_node_types: {a: {resources: {CPU: 1}}}\n",
        "max_workers: !!int ''\n",
        "a: !!timestamp x\n",
        "a: " + "[" * 5000,
    ],
)
def test_a_file_that_describes_no_cluster_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c.yaml is not a cluster launcher's file") as caught:
        Launcher.read(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)
