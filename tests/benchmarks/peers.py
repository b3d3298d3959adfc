"""A training step of ours, of dictionary_learning and of SAELens, at the same work.

    python tests/benchmarks/peers.py [--shape 512,4096,1024] [--l0 16 64 256] [--architecture gated standard]
        [--threads 2] [--rounds 7] [--environment DIR] [--json FILE]

Random rows of one distribution, the same width, batch and number of active features, float32, the same threads; a step
is everything from a batch in memory to updated weights: ours by its default recipe (norm_weighted/modern) and by the
paper's objective, theirs by their trainers' own step. Each runs in a process of its own; in a round each takes its turn
of a few steps, so that all have the same share of a machine whose speed changes. Given are medians over the rounds, and
peak memory of the process. The neighbours get an environment of their own, made at the first use in --environment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from environments import neighbours

WORKER = Path(__file__).parent / "peers_worker.py"
OURS = ("dense", "sparse-cpu")
OBJECTIVES = ("norm_weighted", "paper")
THEIRS = ("dictionary_learning", "sae_lens")
COLUMNS = ("step", "ms a step", "ratio", "tokens/s", "L0", "peak MB")


class Worker:
    """A process that trains with one library when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.answers: list[dict[str, float]] = []

    def turn(self) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} ended")  # type: ignore[arg-type]
        answer: dict[str, float] = json.loads(line)
        return answer


@contextmanager
def worker(python: Path, *arguments: object) -> Iterator[Worker]:
    command = [str(python), str(WORKER), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Worker(process)
    finally:
        process.communicate()


def measure(python: Path, architecture: str, shape: list[int], l0: float, threads: int, rounds: int) -> dict[str, Any]:
    """Medians of every library, by its name."""
    own = Path(sys.executable)
    common = (architecture, *shape, l0, threads, rounds)
    with ExitStack() as stack:
        workers = {
            f"{engine} ({objective})": stack.enter_context(worker(own, engine, objective, *common))
            for engine in OURS
            for objective in OBJECTIVES
        }
        workers |= {name: stack.enter_context(worker(python, name, "own", *common)) for name in THEIRS}
        for each in workers.values():
            each.turn()  # compiles, and makes memory
        for _ in range(rounds):
            for each in workers.values():
                each.answers.append(each.turn())
    return {
        name: {key: statistics.median(a[key] for a in each.answers) for key in each.answers[0]}
        for name, each in workers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="512,4096,1024", help="d_in, width and batch")
    parser.add_argument("--l0", type=float, nargs="+", default=[16, 64, 256], help="active features of a row")
    parser.add_argument("--architecture", nargs="+", default=["gated", "standard"], choices=["gated", "standard"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir(), "gsae-ray-peers"))
    parser.add_argument("--json", type=Path, help="file that gets the figures")
    arguments = parser.parse_args()
    shape = [int(size) for size in arguments.shape.split(",")]
    python = neighbours(arguments.environment)
    found = []
    for architecture in arguments.architecture:
        for l0 in arguments.l0:
            rows = measure(python, architecture, shape, l0, arguments.threads, arguments.rounds)
            found.append({"architecture": architecture, "shape": shape, "l0": l0, "rows": rows})
            print(f"\n{architecture}, (d_in, width, batch) {tuple(shape)}, L0 {l0:g}, threads {arguments.threads}")
            print("{:28} {:>9} {:>7} {:>9} {:>7} {:>8}".format(*COLUMNS))
            ours = rows["sparse-cpu (norm_weighted)"]["ms"]
            for name, row in rows.items():
                speed = 1000 * shape[2] / row["ms"]
                print(
                    f"{name:28} {row['ms']:9.2f} {row['ms'] / ours:7.2f} {speed:9.0f} {row['l0']:7.1f} "
                    f"{row['peak_mb']:8.0f}",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
