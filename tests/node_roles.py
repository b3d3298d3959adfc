"""Run by test_faults: a sweep on a cluster whose nodes have roles, and come and go.

A process of its own, since Ray reads how soon it notices a dead node from the environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
from faults import TOKENS, Home, add_node, head_without_slots, processes, stop, wait_until


def main(folder: Path) -> None:
    """Nodes: the head without slots, one for producers, one for a trial; a second of these comes, the first goes."""
    cluster = head_without_slots()
    producer, first = add_node(cluster, "producer"), add_node(cluster, "trainer")
    home = Home(folder)
    driver = home.command("--address", cluster.address)
    try:
        wait_until(lambda: home.furthest()[0] >= 0.2 * TOKENS)
        assert where(home) == {first.node_id}, "a trial runs on the producers' node, or the head"
        pid = home.pid(home.furthest()[1])
        os.kill(pid, signal.SIGSTOP)  # it is not to be over before the node has come
        second = add_node(cluster, "trainer")
        wait_until(lambda: second.node_id in where(home))
        raylet = producer.all_processes["raylet"][0].process.pid
        shells = processes("ProducerActor")
        assert len(shells) == 2
        assert {psutil.Process(shell.pid).ppid() for shell in shells} == {raylet}, "a producer runs elsewhere"
        cluster.remove_node(first, allow_graceful=False)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        assert driver.wait(200) == 0, home.said()
        assert where(home) <= {first.node_id, second.node_id}
        assert "is tried again from" in home.events, "nothing was lost with the node"
    finally:
        stop(driver)
        cluster.shutdown()


def where(home: Home) -> set[str]:
    """Nodes that trials ran on last."""
    return {directory.newest_begun["node"] for directory in home.trials.values() if "node" in directory.newest_begun}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
