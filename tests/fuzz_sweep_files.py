"""Mutated sweep files: each is a sweep, or refused in a few lines that name its key; no traceback, no hang.

    python tests/fuzz_sweep_files.py --files 10000 [--seed S] [--only N]

What a run of a file does before it looks at model and data: read, validate, expand. The seed is printed; a file that
fails is file N of that seed, and is made again by --only. CI draws the same files every time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import yaml

from gsae_ray.config import plain_yaml
from gsae_ray.config.explain import MAX_LINES
from gsae_ray.config.load import load_sweep
from gsae_ray.config.sweep import Sweep
from gsae_ray.errors import UserError
from gsae_ray.saes import SAEConfig

SWEEPS = Path(__file__).parents[1] / "sweeps"
TIMEOUT_S = 20.0
"""A hang, on however busy a machine: most files take some milliseconds."""
N_LAYERS, D_IN = 32, 64
SCALARS = [
    *("null", "~", "true", "false", "yes", "all", "auto", "builtin", "gated", "standard", "rescale_shift", "paper"),
    *("1e15", "1e16", "1e300", "-1e300", "1e308", "1e309", "1e999999999", ".inf", "-.inf", ".nan", "1_000", "10_000"),
    *("18446744073709551616", "9" * 40, "9" * 41, "9" * 400, "9" * 5000, "-" + "9" * 5000, "0." + "0" * 5000 + "1"),
    *("²", "٣", "Ⅷ", "1²", "½", "ä", "\u200b", "\u2028", "\ufeff", "\U0001f600", "x" * 300, "x" * 50_000, "''", '""'),
    *("2024-05-01", "2024-13-45", "2024-05-01T25:61:61", "!!float x", "!!int ''", "!!timestamp x", "!!binary ä"),
    *("!!python/object/apply:os.getcwd []", "! x", "!<x> y", "!!bool maybe", "!!null x", "!!set {a}", "!!omap [a]"),
    *("[" * 30, "[" * 3000, "{a: " * 30, "[" * 18 + "]" * 18, "- " * 2000 + "x", "[" + "1, " * 3000 + "]"),
    *("{log_range: [1, 16], n: 5}", "{log_range: [1, 16], n: 20000}", "{log_range: [1, 16], n: 100000000000}"),
    *("{log_range: [1e-6, 1e6], n: 1000}", "{equal_compute_with: gated}", "{equal_compute_with: standard}"),
    *("{from: 0, to: 1, step: 0}", "[-1, 31]", "[-33]", "{points: mlp_out}", "{layers: all}", "{at_steps: [1, 2]}"),
]
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
KEYS = [
    "name",
    "saes",
    "layer",
    "layers",
    "l1_coeficient",
    "<<",
    "",
    " ",
    "0",
    "²",
    "ä",
    "x" * 5000,
    "null",
    "__class__",
]


def mutate_text(text: str, rng: random.Random) -> str:
    """Characters, lines and words."""
    for _ in range(rng.choice((1, 1, 1, 2, 6))):
        lines = text.splitlines(keepends=True) or [""]
        at = rng.randrange(len(text) + 1)
        line = rng.randrange(len(lines))
        match rng.randrange(8):
            case 0:
                text = text[:at] + rng.choice("{}[]:,&*!|>'\"%@`#-?\t \n\0\x85\ufeffé²") + text[at:]
            case 1:
                text = text[:at] + text[at + rng.randrange(1, 6) :]
            case 2:
                text = "".join(lines[:line] + lines[line + 1 :])
            case 3:
                text = "".join(lines[: line + 1] + lines[line:])
            case 4:
                words = list(re.finditer(r"[\w.+-]+", text))
                word = rng.choice(words) if words else None
                if word:
                    text = text[: word.start()] + rng.choice(SCALARS) + text[word.end() :]
            case 5:
                lines[line] = " " * rng.randrange(1, 5) + lines[line]
                text = "".join(lines)
            case 6:
                text = text[:at] + rng.choice(SCALARS) + text[at:]
            case _:
                text = (
                    text[:at] if rng.random() < 0.3 else text.replace(": ", rng.choice((":", ": &a ", ": *a", " :")), 1)
                )
    return text


def places(value: Any, path: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    """Of every value within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutate_structure(value: Any, rng: random.Random) -> str:
    """Keys and values, written again as YAML."""
    tree = copy.deepcopy(value)
    words: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 1, 2))):
        known = list(places(tree))
        if not known:
            break
        *path, last = rng.choice(known)
        node = tree
        for part in path:
            node = node[part]
        match rng.randrange(7):
            case 0 | 1 | 2:
                mark = f"mark{len(words)}"
                words[mark] = rng.choice(SCALARS)
                node[last] = mark
            case 3:
                del node[last]
            case 4 if isinstance(node, dict):
                node[rng.choice(KEYS)] = node.pop(last)
            case 5:
                node[last] = [copy.deepcopy(node[last])] * rng.choice((1, 2, 30))
            case _:
                node[last] = {rng.choice(KEYS): copy.deepcopy(node[last])}
    text: str = yaml.dump(
        tree, Dumper=DUMPER, sort_keys=False, allow_unicode=True, default_flow_style=rng.choice((None, True))
    )
    for mark, word in words.items():
        text = text.replace(mark, word, 1)
    return text


def overrides_of(value: Any, rng: random.Random) -> list[str]:
    """What might stand behind --set."""
    known = list(places(value))
    found = []
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        path = [str(part) for part in rng.choice(known)]
        if rng.random() < 0.3:
            path[rng.randrange(len(path))] = rng.choice([*KEYS, "-1", "99", "1²", "9" * 5000])
        if rng.random() < 0.1:
            path += rng.choice((["x"], ["0"], ["x"] * 50, ["x"] * 5000))
        found.append(".".join(path) + rng.choice(("=", "=", "=", "=", "")) + rng.choice(SCALARS))
    return found


class _Parents(dict[str, tuple[SAEConfig, str]]):
    """Any run's SAE."""

    def __missing__(self, run: str) -> tuple[SAEConfig, str]:
        hyperparameters = {"l1_coefficient": 1.0}
        return SAEConfig(architecture="standard", d_in=D_IN, d_sae=96, hyperparameters=hyperparameters), run


def go_through(path: Path, overrides: list[str]) -> None:
    """Everything before model and data are looked at."""
    sweep = load_sweep(path, overrides)
    again = path.with_name("again.yaml")
    again.write_text(plain_yaml.dump(sweep.model_dump(mode="json")), encoding="utf-8")
    if load_sweep(again) != sweep:
        raise AssertionError("what is written down of the sweep is read back as another one")
    sweep = sweep.of_model(N_LAYERS)
    sweep.notices()
    if not sweep.expand(dict.fromkeys(sweep.used_sites, D_IN), {}, _Parents()):
        raise AssertionError("a sweep without trials")


def wrong_with(message: str, path: Path, text: str) -> str | None:
    """What a refusal lacks, if anything."""
    first, *others = message.splitlines()
    if 1 + len(others) > MAX_LINES:
        return f"{1 + len(others)} lines"
    if max(map(len, message.splitlines())) > 2500:
        return "a line that never ends"
    if re.search(r"pydantic|valid (tuple|integer|string|list|dict)|instance of|validation error|Input ", message):
        return "jargon"
    if first.startswith("--set "):
        return None
    # What is no YAML, or no mapping, has no key: the line is told.
    if first.startswith(f"{path}") and re.search(
        r"not valid YAML|a sweep file is |line \d+: ((a|the|text) |[^:]*$)", first
    ):
        return None
    first = first.removeprefix(f"{path}").removeprefix(": ")
    lines = [line.strip() for line in others if not line.startswith("  and ")] if others else [first]
    for line in lines:
        line = re.sub(r"^, line \d+: ", "", line)
        top = re.split(r"[.:\s(]", line)[0]
        if top not in Sweep.model_fields and top[:150] not in text:
            return f"no key in {line!r}"
    return None


def case(seed: int, number: int, bases: list[tuple[str, Any]]) -> tuple[str, list[str]]:
    """Text and overrides of file `number`."""
    rng = random.Random(f"{seed}/{number}")
    base, value = rng.choice(bases)
    text = mutate_text(base, rng) if rng.random() < 0.4 else mutate_structure(value, rng)
    return (base if rng.random() < 0.1 else text), overrides_of(value, rng)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"more than {TIMEOUT_S:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def base_texts() -> list[str]:
    """The repository's sweep files, without their comments."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(SWEEPS.glob("*.yaml"))]
    return [re.sub(r"(^|(?<=\s))#.*\n", "\n", text, flags=re.MULTILINE) for text in texts]


def run(seed: int, numbers: range, say: Callable[[str], None] = click.echo) -> bool:
    """Whether all went well."""
    bases = [(text, yaml.safe_load(text)) for text in base_texts()]
    ends: Counter[str] = Counter()
    bad, slowest = 0, 0.0
    with tempfile.TemporaryDirectory(prefix="gsae-fuzz-") as folder:
        path = Path(folder, "sweep.yaml")
        for number in numbers:
            text, overrides = case(seed, number, bases)
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
            began = time.monotonic()
            trouble: str | None
            try:
                with limited():
                    go_through(path, overrides)
                trouble, end = None, "sweeps"
            except UserError as error:
                trouble, end = wrong_with(str(error), path, text + " ".join(overrides)), "refused"
                trouble = trouble and f"{trouble}:\n{error}"
            except Exception:  # noqa: BLE001 - that is what is looked for
                trouble, end = traceback.format_exc()[-3000:], "tracebacks"
            if trouble is not None:
                bad += 1
                say(f"--only {number} --seed {seed}: {trouble}"[:4000])
            ends[end] += 1
            slowest = max(slowest, time.monotonic() - began)
    counts = ", ".join(f"{count:,} {end}" for end, count in sorted(ends.items()))
    which = f"seed {seed}, files {numbers.start} to {numbers.stop - 1}"
    say(f"{which}: {counts}; {bad} bad; the slowest took {slowest:.2f} s")
    return bad == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0 if os.environ.get("CI") else secrets.randbelow(10**6))
    parser.add_argument("--only", type=int)
    args = parser.parse_args()
    click.echo(f"seed {args.seed}")
    if args.only is not None:
        sys.exit(0 if run(args.seed, range(args.only, args.only + 1)) else 1)
    started = time.monotonic()
    parts = [range(start, min(start + 500, args.files)) for start in range(0, args.files, 500)]
    with ProcessPoolExecutor() as pool:
        good = all(list(pool.map(functools.partial(run, args.seed), parts)))
    click.echo(f"{args.files:,} files in {time.monotonic() - started:.0f} s")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
