"""Run by test_waiting, as root: nodes that do not see the storage, one from the start, then one that comes later."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from faults import NODE_STORE_BYTES, SWEEP, TOKENS, Home, add_node, head_without_slots, stop, wait_until

from gsae_ray.errors import INTERRUPTED


@contextlib.contextmanager
def blind_node(address: str, folder: Path) -> Iterator[None]:
    """A node for trials to which this folder is empty: it has a mount of its own there."""
    start = f"ray start --address {address} --num-cpus 1 --object-store-memory {NODE_STORE_BYTES} --block"
    command = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {folder} && exec {start}"]
    with (folder.parent / "node.txt").open("a") as log:
        node = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        family = [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        node.wait(10)


def main(folder: Path) -> None:
    cluster = head_without_slots()
    long = SWEEP["training"] | {"tokens": 4 * TOKENS}  # so that there are trials left for the node that comes
    home = Home(folder, {**SWEEP, "training": long})
    home.storage.mkdir()
    driver = None
    try:
        with blind_node(cluster.address, home.storage):
            wait_until(lambda: "Ray runtime started" in (folder / "node.txt").read_text())
            driver = home.command("--address", cluster.address)
            assert driver.wait(100) == 2, home.said()
            print(home.said())  # noqa: T201
        add_node(cluster)
        driver = home.command("--address", cluster.address)
        wait_until(lambda: home.furthest()[0] > 0)
        with blind_node(cluster.address, home.storage):
            assert driver.wait(200) == INTERRUPTED, home.said()
            print(home.said())  # noqa: T201
    finally:
        if driver is not None:
            stop(driver)
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
