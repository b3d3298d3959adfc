"""Memory and time of making the tables of features of a wide SAE, on a producer in a process of its own.

    PYTHONPATH=tests python tests/benchmarks/feature_statistics.py [--width 131072] [--tokens 8192]

An SAE with random weights, after layer 2 of the built-in model (d_in 128): `topk`, 64 features a row, and `standard`,
half of the features of every row, more than any SAE that is worth looking at has. Each is looked at by a producer as
launches have them, in a process of its own, with the default pieces of text (10 of 32 tokens a feature). Printed: the
process's peak of resident memory, and what of it comes after the producer has loaded the model; seconds of the passes
and of what follows from the decoder; bytes of the tables on disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

CHILD = """
import resource, sys, time
from pathlib import Path
import torch
from trials import random_sae
from gsae_ray.activations.producer import Producer
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.evaluation import feature_statistics as made
from gsae_ray.saes.folder import content_hash

folder, architecture, width, tokens = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
entry = {"architecture": architecture, "widths": [width]}
entry |= {"k": 64} if architecture == "topk" else {"l1_coefficient": 1.0}
sweep = Sweep.model_validate({
    "name": "features",
    "model": {"name": "builtin"},
    "dataset": {"name": "builtin"},
    "sites": {"layers": [2], "points": ["resid_post"]},
    "saes": [entry],
    "training": {"tokens": 2000, "batch_size": 10},
    "evaluation": {"tokens": tokens, "features": True},
})
plan = prepare(sweep, folder / "runs")
trial = plan.trials[0]
if sys.argv[5] == "write":
    random_sae(trial).save(folder / "sae")
    sys.exit()
def status(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0]) / 1024
producer = Producer(producer_spec(plan))
before = status("VmRSS")
times, started = {}, time.perf_counter()
def timed(name):
    function = getattr(made._Making, name)
    def run(*args):
        begin = time.perf_counter()
        try:
            return function(*args)
        finally:
            times[name] = time.perf_counter() - begin
    setattr(made._Making, name, run)
for name in ("_first_pass", "_second_pass", "_write"):
    timed(name)
looked = made.Looked(
    trial.site, folder / "sae", folder / "features", content_hash(folder / "sae"), "random", width, 2 * trial.d_in
)
task = made.FeatureStatistics((looked,), sweep.evaluation.features, sweep.language_model, plan.evaluation.fingerprint)
assert producer.run(task) == 1
seconds = time.perf_counter() - started
size = sum(path.stat().st_size for path in (folder / "features").iterdir()) / 2**20
peak = status("VmHWM")
print(f"{architecture} {width}: peak {peak:.0f} MiB, {peak - before:.0f} above the producer's {before:.0f}; "
      f"predicted {plan.producer.host / 2**20:.0f} MiB for the producer; {seconds:.0f} s: first pass "
      f"{times['_first_pass']:.0f}, second {times['_second_pass']:.0f}, directions and writing {times['_write']:.0f}; "
      f"tables {size:.0f} MiB")
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=131_072)
    parser.add_argument("--tokens", type=int, default=8192, help="held-out rows")
    parser.add_argument("--architecture", nargs="*", default=["topk", "standard"])
    given = parser.parse_args()
    for architecture in given.architecture:
        with tempfile.TemporaryDirectory() as folder:
            for step in ("write", "measure"):
                arguments = [folder, architecture, str(given.width), str(given.tokens), step]
                subprocess.run([sys.executable, "-c", CHILD, *arguments], check=True)


if __name__ == "__main__":
    main()
