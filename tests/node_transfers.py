"""Run by test_launch: a sweep whose trials share a node that has no producer.

Prints the bytes that this node received from others ÷ those of the activations.

A process of its own, since Ray reads how often it reports its metrics from the environment.
"""

from __future__ import annotations

import re
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import ray
from faults import SWEEP, Home, add_node, head_without_slots
from mlflow.tracking import MlflowClient

TRIALS = 3
LAUNCH = "tags.`gsae.kind` = 'launch'"
D_MODEL = 128


def main(folder: Path) -> None:
    """Nodes: the head without slots, one for producers, one for all trials at once."""
    cluster = head_without_slots()
    add_node(cluster, "producer")
    trainer = add_node(cluster, "trainer", cpus=TRIALS)
    ray.init(address=cluster.address, log_to_driver=False)
    sites = {"layers": [1], "points": ["resid_post"]}
    saes = [{"architecture": "gated", "widths": [64], "l1_coefficient": [1, 2, 4]}]
    home = Home(folder, {**SWEEP, "sites": sites, "saes": saes})
    try:
        before = settled(trainer.node_id)
        result = home.run()
        assert result.failures == {} and result.forward_ratio == 1.0
        assert {d.newest_begun["node"] for d in home.trials.values()} == {trainer.node_id}
        assert len({d.newest_begun["pid"] for d in home.trials.values()}) == TRIALS, "one after the other"
        received = settled(trainer.node_id) - before
        client = MlflowClient(home.uri)
        (launch,) = client.search_runs([client.get_experiment_by_name(home.experiment).experiment_id], LAUNCH)
        print(received / (launch.data.metrics["rows_produced"] * D_MODEL * 4))  # noqa: T201
    finally:
        ray.shutdown()
        cluster.shutdown()


def settled(node_id: str) -> int:
    """Bytes of objects that a node has received from others, once Ray's report of it stands still."""
    values: list[int] = []
    while len(values) < 5 or len(set(values[-5:])) > 1:
        values.append(received_bytes(node_id))
        time.sleep(1)
    return values[-1]


def received_bytes(node_id: str) -> int:
    node: dict[str, Any] = next(node for node in ray.nodes() if node["NodeID"] == node_id)
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = re.findall(r"^ray_object_manager_bytes\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    return int(sum(float(value) for labels, value in found if 'Type="Received"' in labels))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
