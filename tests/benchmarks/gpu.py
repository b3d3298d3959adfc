"""All that is measured on a GPU, in a quarter of an hour: what holds, how fast it is, and how near a floor.

    python tests/benchmarks/gpu.py H200                     # the name that Ray gives it
    python tests/benchmarks/gpu.py H200 --parts kernels steps --minutes 5
    python tests/benchmarks/gpu.py H200 --dry-run           # what it would do, without a GPU

Parts come in this order, each when there is time left for it, and say what they find as they go; a table is the last:

kernels   the engine sparse-cuda against float64, small shapes by tests/training/triton_checks.py and a large one here
ceilings  matrix products by precision, and copies on the device
steps     a training step by width, engine and precision, and its ratio to a floor: the larger of its dense FLOPs ÷ the
          measured rate of products, and the bytes that it has to move ÷ that of copies
sharing   steps of 1, 2, 4 and 8 trials that share the card
forward   blocks of a real producer of a random model of GPT-2's shape
sweep     16 trials from a sweep file to a frontier

Its shares of the data sheet are what `duration.EFFICIENCY` stands for.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from gsae_ray.capacity.duration import EFFICIENCY
from gsae_ray.capacity.forecast import flops_a_row
from gsae_ray.capacity.gpus import GPU, gpu_of
from gsae_ray.config.recipe import EngineName, Precision
from gsae_ray.training.engines.base import Update
from gsae_ray.training.engines.precision import products_in
from gsae_ray.training.step_time import Stepping

ROOT = Path(__file__).parents[2]
D_IN, BATCH, L0 = 2304, 4096, 64
WIDTHS = (16_384, 131_072)
ARCHITECTURES = ("gated", "standard")
WAYS: tuple[tuple[EngineName, Precision], ...] = (
    ("dense", "float32"),
    ("dense", "tf32"),
    ("dense", "bf16"),
    ("sparse-cuda", "float32"),
)
SHARING = (1, 2, 4, 8)
SHARED_S = 5.0
"""Seconds that trials step side by side."""


class Rates(NamedTuple):
    """What the card does at most, measured."""

    flops: dict[str, float]
    """FLOP/s of large products, by precision."""
    bytes: float
    """Bytes/s of a copy, read and written."""


class Bench:
    """What the parts share: the card, what was measured before, and the table."""

    def __init__(self, sheet: GPU) -> None:
        self.sheet = sheet
        self.rates: Rates | None = None
        self.table: list[str] = []

    def say(self, line: str, in_table: bool = True) -> None:
        print(line, flush=True)
        if in_table:
            self.table.append(line)


def median_ms(function: Callable[[], object], times: int = 10, warm_up: int = 3) -> float:
    """Median time on the device, by its events."""
    for _ in range(warm_up):
        function()
    found = []
    for _ in range(times):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        function()
        last.record()
        torch.cuda.synchronize()
        found.append(first.elapsed_time(last))
    return statistics.median(found)


def stepping(
    architecture: str, width: int, engine: EngineName, precision: Precision, steps: int, interval: int
) -> Stepping:
    return Stepping(
        architecture, D_IN, width, BATCH, L0, engine, "norm_weighted", steps, interval, precision, device="cuda"
    )


# ---- parts ----------------------------------------------------------------------------------------------------------


def kernels(bench: Bench) -> None:
    checks = ROOT / "tests" / "training" / "triton_checks.py"
    # Without what tests of launches need: neither Ray nor MLflow has to be here.
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "-q",
        str(checks),
    ]
    done = subprocess.run(pytest, check=False, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-3000:], done.stderr[-1000:], flush=True)
    bench.say(f"kernels: {(done.stdout.strip().splitlines() or ['nothing'])[-1]}")
    for architecture in ARCHITECTURES:
        bench.say(f"kernels, {architecture}, {WIDTHS[0]:,} features, against float64: {_large_errors(architecture)}")


def _large_errors(architecture: str) -> str:
    """Relative errors of the losses and gradients of a step of real size."""
    found: list[dict[str, torch.Tensor]] = []
    engines: tuple[EngineName, ...] = ("sparse-cuda", "dense")
    for engine in engines:
        trainer = stepping(architecture, WIDTHS[0], engine, "float32", 10, 10).trainer
        x_BD, sae = trainer.stream.read(BATCH).to("cuda"), trainer.sae
        if engine == "dense":
            x_BD, sae = x_BD.double(), sae.double()
        losses_4, fired_F = trainer.engine.step(sae, x_BD, 1.0, "norm_weighted")
        gradients = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
        found.append({"losses": losses_4, "fired": fired_F, **gradients})
        trainer.optimiser.zero_grad()
    ours, exact = found
    errors = {k: ((ours[k].double() - v.double()).norm() / v.double().norm()).item() for k, v in exact.items()}
    worst = max(errors, key=lambda name: errors[name])
    # A gate that float32 rounds to its other side is 2e-3 of the gradient of a quarter of a million entries.
    verdict = "ok" if all(error < 5e-3 for error in errors.values()) else "WRONG"
    return f"{verdict}, the largest error is {errors[worst]:.1e} of {worst}"


def ceilings(bench: Bench) -> None:
    n = 8192
    a, b = (torch.randn(n, n, device="cuda") for _ in range(2))
    half_a, half_b = a.bfloat16(), b.bfloat16()
    flops: dict[str, float] = {}
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bf16")
    for precision in precisions:
        with products_in(precision):
            ms = median_ms((lambda: half_a @ half_b) if precision == "bf16" else (lambda: a @ b))
        flops[precision] = 2 * n**3 / ms * 1000
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / median_ms(lambda: target.copy_(source)) * 1000
    bench.rates = Rates(flops, copied)
    products = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in flops.items())
    bench.say(f"ceilings: products of {n} in TFLOP/s: {products}; copies {copied / 1e12:.2f} TB/s")


def floor_ms(rates: Rates, width: int, parameters: int, flops: float, engine: str, precision: str) -> float:
    """The larger of the times that products and memory take at least.

    Memory: weights are read and gradients written, Adam reads weights, gradients and two moments and writes three of
    them; a sparse step also writes and reads scores, and reads rows of both weights for each active entry.
    """
    nbytes = 9 * 4 * parameters
    if engine == "sparse-cuda":
        nbytes += 2 * 2 * BATCH * width + 2 * 4 * BATCH * L0 * D_IN
        flops, precision = 2 * BATCH * D_IN * width, "bf16"
    return 1000 * max(flops / rates.flops[precision], nbytes / rates.bytes)


def steps(bench: Bench) -> None:
    if bench.rates is None:
        ceilings(bench)
    assert bench.rates is not None
    for width in WIDTHS:
        for architecture in ARCHITECTURES:
            for engine, precision in WAYS:
                what = f"step, {architecture}, {D_IN} -> {width:,}, batch {BATCH}, {engine}, {precision}"
                try:
                    bench.say(f"{what}: {_step(bench, bench.rates, architecture, width, engine, precision)}")
                except Exception as error:  # noqa: BLE001
                    traceback.print_exc()
                    bench.say(f"{what}: {type(error).__name__}: {str(error).splitlines()[0]}")
                torch.cuda.empty_cache()


def _step(bench: Bench, rates: Rates, architecture: str, width: int, engine: EngineName, precision: Precision) -> str:
    torch.cuda.reset_peak_memory_stats()
    made = stepping(architecture, width, engine, precision, steps=30, interval=10)
    trainer = made.trainer
    batches = [torch.randn(BATCH, D_IN, device="cuda") for _ in range(3)]
    found: list[torch.Tensor] = []

    def one_step() -> None:
        x_BD = batches[len(found) % len(batches)]
        _, fired_F = trainer.engine.step(trainer.sae, x_BD, 1.0, "norm_weighted")
        trainer.engine.update(trainer.sae, trainer.optimiser, Update(1e-12, 1.0, False))
        found.append(fired_F)

    ms = median_ms(one_step)
    made.interval()
    whole_ms, l0 = made.interval()  # with the way of rows to the card
    flops = flops_a_row(trainer.trial) * BATCH
    parameters = sum(p.numel() for p in trainer.sae.parameters())
    floor = floor_ms(rates, width, parameters, flops, engine, precision)
    tflops = flops / ms / 1e9
    sheet = f", {tflops:.1f} TFLOP/s, {tflops / bench.sheet.float32:.2f} of the data sheet"
    return (
        f"{ms:.2f} ms, {ms / floor:.1f} x the floor of {floor:.2f}; {whole_ms:.2f} ms with reading; L0 {l0:.0f}; "
        f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB{sheet if (engine, precision) == WAYS[0] else ''}"
    )


def sharing(bench: Bench) -> None:
    for engine, precision in (WAYS[0], WAYS[2], WAYS[3]):
        alone = 0.0
        for count in SHARING:
            command = [sys.executable, __file__, "as-trial", "--engine", engine, "--precision", precision]
            trials = [
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for _ in range(count)
            ]
            try:
                ready = [_said(trial) for trial in trials]
                for trial in trials:
                    assert trial.stdin is not None
                    trial.stdin.write("go\n")
                    trial.stdin.flush()
                rates = [float(_said(trial)) for trial in trials]
            finally:
                for trial in trials:
                    trial.kill()
                    trial.wait()
            assert set(ready) == {"ready"}, ready
            alone = alone or rates[0]
            bench.say(
                f"sharing, gated, {WIDTHS[0]:,} features, {engine}, {precision}: {count} trials, "
                f"{sum(rates) * BATCH:,.0f} tokens/s together, {sum(rates) / alone:.2f} x one alone"
            )


def _said(trial: subprocess.Popen[str]) -> str:
    assert trial.stdout is not None
    return trial.stdout.readline().strip()


def as_trial(engine: EngineName, precision: Precision) -> None:
    """One of those that share the card: steps for some seconds once it is told to, and prints steps a second."""
    made = stepping("gated", WIDTHS[0], engine, precision, steps=10_000, interval=10)
    made.interval()
    print("ready", flush=True)
    sys.stdin.readline()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < SHARED_S:
        made.interval()
        done += 10
    print(done / (time.perf_counter() - started), flush=True)


def forward(bench: Bench) -> None:
    from benchmarks.gpu_launches import measure_forward

    for dtype, sheet in (("float32", bench.sheet.float32), ("bfloat16", bench.sheet.bfloat16)):
        tflops, tokens = measure_forward(dtype)
        bench.say(
            f"forward in {dtype}: {tokens:,.0f} tokens/s, {tflops:.1f} TFLOP/s, {tflops / sheet:.2f} of the data sheet"
        )


def sweep(bench: Bench) -> None:
    from benchmarks.gpu_launches import run_sweep

    bench.say(f"sweep of 16 trials: {run_sweep()}")


PARTS: dict[str, tuple[Callable[[Bench], None], int]] = {
    "kernels": (kernels, 90),
    "ceilings": (ceilings, 15),
    "steps": (steps, 240),
    "sharing": (sharing, 240),
    "forward": (forward, 60),
    "sweep": (sweep, 150),
}
"""Name -> what it does, and about how many seconds it takes on an H200: estimated, until one has run it."""


def main() -> None:
    if sys.argv[1:2] == ["as-trial"]:
        worker = argparse.ArgumentParser()
        worker.add_argument("--engine")
        worker.add_argument("--precision")
        as_trial(**vars(worker.parse_args(sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gpu", help="as Ray names it: its data sheet is in capacity/gpus.py")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="in the order above; default: all"
    )
    parser.add_argument("--minutes", type=float, default=14, help="a part begins if it is likely to end before")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    arguments = parser.parse_args()
    sheet = gpu_of({f"accelerator_type:{arguments.gpu}": 1})
    if sheet is None:
        parser.error(f"no data sheet of {arguments.gpu}")
    parts = {name: part for name, part in PARTS.items() if name in arguments.parts}
    budget = 60 * arguments.minutes
    print(
        f"{sum(s for _, s in parts.values())} of {budget:.0f} s: {', '.join(f'{n} {s}' for n, (_, s) in parts.items())}"
    )
    if arguments.dry_run:
        return
    if not torch.cuda.is_available():
        sys.exit("no GPU here")
    _run(Bench(sheet), parts, budget)


def _run(bench: Bench, parts: dict[str, tuple[Callable[[Bench], None], int]], budget: float) -> None:
    started = time.monotonic()
    bench.say(f"{time.strftime('%Y-%m-%d')}, {torch.cuda.get_device_name(0)}, torch {torch.__version__}")
    for name, (part, seconds) in parts.items():
        used = time.monotonic() - started
        if used + seconds > budget:
            bench.say(f"{name}: left out, {budget - used:.0f} s are left and it takes about {seconds}")
            continue
        try:
            part(bench)
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            bench.say(f"{name}: {type(error).__name__}: {error}")
        torch.cuda.empty_cache()
        print(f"-- {name}: {time.monotonic() - started - used:.0f} s, {budget + started - time.monotonic():.0f} left")
    print("\n== all of it\n" + "\n".join(bench.table))
    print(f"`plan` assumes {EFFICIENCY} of the data sheet (duration.EFFICIENCY)", flush=True)


if __name__ == "__main__":
    main()
