"""Run by test_faults: a sweep on a cluster of three nodes, of which one dies with producers, trials and chunks.

A process of its own, since Ray reads how soon it notices a dead node from the environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray
from faults import Home, add_node, disturbed, head_without_slots


def main(folder: Path, at: float) -> None:
    """Nodes: the head without slots, and two workers with one trial each."""
    cluster = head_without_slots()
    workers = [add_node(cluster) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    home = Home(folder)

    def strike(trial: str) -> None:
        node = home.trials[trial].newest_begun["node"]
        cluster.remove_node(next(worker for worker in workers if worker.node_id == node), allow_graceful=False)

    try:
        with disturbed(home, at, strike):
            result = home.run()
        print(f"forward ratio {result.forward_ratio}, {result.repeated_rows} rows again")  # noqa: T201
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
