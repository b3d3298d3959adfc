"""How large the page of a wide SAE's features is, and how soon a browser shows it from disk.

    PYTHONPATH=tests python tests/benchmarks/feature_pages.py [--width 16384] [--contexts 10] [--window 32] [--rounds 5]

Tables that are constructed: tokens drawn from 50,000 by Zipf's law, on a fifth of which a feature is active, lists of
ten tokens, ten neighbours. Printed: seconds to write the page, its megabytes with its data, and of Chromium's loads of
it from disk the medians of first-contentful-paint, of when the list can be searched, of when a feature is shown, and of
how long one of another shard takes. Chromium is a new process each time; the files are in the system's cache.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gsae_ray.feature_tables import About, FeatureTables
from gsae_ray.feature_tables.schema import CONTEXTS, FEATURES, TOKENS, VERSION
from gsae_ray.features.matching import Matches
from gsae_ray.features.page import Other, data_of, page_of, script_of

VOCABULARY, LISTED, HELD_OUT = 50_000, 10, 10_000_000
EDGES = [float(2.0 ** (step / 4)) for step in range(-48, 49)]
PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def constructed(width: int, contexts: int, window: int) -> FeatureTables:
    rng = np.random.default_rng(0)
    fired = np.maximum(contexts, rng.lognormal(8, 2, width).astype(np.int64)).clip(max=HELD_OUT)
    largest = rng.lognormal(1, 1, width).astype(np.float32)

    def tokens(*shape: int) -> Any:
        return (rng.zipf(1.2, shape) % VOCABULARY).astype(np.int32)

    def lists(values: Any) -> pa.Array:
        offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
        return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))

    def others() -> Any:
        return rng.integers(width, size=(width, LISTED)).astype(np.int32)

    def falling() -> Any:
        return -np.sort(-rng.uniform(0, 1, (width, LISTED)).astype(np.float32), axis=1)

    bins = np.arange(len(EDGES) - 1)
    shares = np.exp(-((bins - rng.normal(48, 4, (width, 1))) ** 2) / 50)
    histogram = (shares / shares.sum(1, keepdims=True) * fired[:, None]).astype(np.int64)
    features = pa.table(
        {
            **{"feature": np.arange(width, dtype=np.int32), "density": fired / HELD_OUT, "fired": fired},
            **{"max_activation": largest, "mean_activation": largest / 4, "histogram": lists(histogram)},
            **{"top_tokens": lists(tokens(width, LISTED)), "top_token_counts": lists(others() % 64)},
            **{"raised_tokens": lists(tokens(width, LISTED)), "raised_logits": lists(falling())},
            **{"lowered_tokens": lists(tokens(width, LISTED)), "lowered_logits": lists(-falling())},
            **{"neighbours": lists(others()), "neighbour_cosines": lists(falling())},
            **{"coactive": lists(others()), "coactive_shares": lists(falling())},
        }
    ).cast(FEATURES)
    pieces = width * contexts
    active = rng.uniform(size=(pieces, window)) < 0.2
    active[:, window // 2] = True
    activations = active * rng.uniform(0, 1, active.shape).astype(np.float32) * np.repeat(largest, contexts)[:, None]
    top = np.tile(np.arange(contexts) < contexts - contexts // 2, width)
    shown = pa.table(
        {
            "feature": np.repeat(np.arange(width, dtype=np.int32), contexts),
            "kind": np.where(top, "top", "quantile"),
            "rank": np.tile(np.arange(contexts, dtype=np.int32), width),
            "quantile": pa.array(rng.uniform(0, 1, pieces).astype(np.float32), mask=top),
            "context": rng.integers(100_000, size=pieces).astype(np.int32),
            "position": np.full(pieces, 100 + window // 2, np.int32),
            "start": np.full(pieces, 100, np.int32),
            "tokens": lists(tokens(pieces, window)),
            "activations": lists(activations.astype(np.float32)),
        }
    ).cast(CONTEXTS)
    texts = pa.table({"token": range(VOCABULARY), "text": [f" word{n}" for n in range(VOCABULARY)]}, schema=TOKENS)
    about = About(
        version=VERSION,
        label="constructed",
        site="blocks.0.hook_resid_post",
        d_sae=width,
        sae="0" * 64,
        heldout="1" * 64,
        rows=HELD_OUT,
        seed=0,
        histogram_edges=EDGES,
        logit_effects="constructed",
    )
    return FeatureTables(about, features, shown, texts)


def write(tables: FeatureTables, folder: Path) -> None:
    """Writes a page as `gsae-ray features` does, with three other SAEs beside it."""
    width = tables.about["d_sae"]
    rng = np.random.default_rng(1)
    found = [Matches(rng.integers(width, size=width), rng.uniform(0, 1, width).astype(np.float32)) for _ in range(3)]
    others = [Other(f"other {n}", f"../{n}/index.html", matches) for n, matches in enumerate(found)]
    (folder / "data").mkdir()
    for name, value in data_of(tables, others):
        (folder / "data" / f"{name}.js").write_text(script_of(name, value), "utf-8")
    (folder / "index.html").write_text(page_of(tables, "constructed", others, "../index.html"), "utf-8")


def loads(page: Path, width: int, rounds: int) -> Iterator[list[float]]:
    """Milliseconds of each load: paint, list, feature, and a feature of another shard."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        for _ in range(rounds):
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            tab = browser.new_page()
            tab.add_init_script(
                "window.times = {}; addEventListener('DOMContentLoaded', () => new MutationObserver(() => { for (const "
                "name of ['listed', 'feature']) if (document.body.dataset[name]) times[name] ??= performance.now(); })"
                ".observe(document.body, { attributes: true }))"
            )
            tab.goto(page.as_uri())
            tab.wait_for_function("times.listed && times.feature")
            times = [tab.evaluate(PAINTED), tab.evaluate("times.listed"), tab.evaluate("times.feature")]
            last = tab.evaluate(
                "feature => new Promise((done) => { const begin = performance.now(); new MutationObserver(() => { if "
                "(document.body.dataset.feature === String(feature)) done(performance.now() - begin); }).observe("
                "document.body, { attributes: true }); location.hash = `#feature=${feature}`; })",
                width - 1,
            )
            yield [*times, last]
            browser.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("width", 16_384), ("contexts", 10), ("window", 32), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    tables = constructed(arguments.width, arguments.contexts, arguments.window)
    with tempfile.TemporaryDirectory() as directory:
        folder, begin = Path(directory), time.perf_counter()
        write(tables, folder)
        seconds = time.perf_counter() - begin
        files = [path for path in folder.rglob("*") if path.is_file()]
        print(
            f"written in {seconds:.1f} s; {sum(path.stat().st_size for path in files) / 1e6:.1f} MB, {len(files)} files"
        )
        measured = [*loads(folder / "index.html", arguments.width, arguments.rounds)]
        for name, times in zip(("paint", "list", "feature", "another shard"), zip(*measured, strict=True), strict=True):
            print(f"{name}: {statistics.median(times):.0f} ms (of {len(times)}: {min(times):.0f} to {max(times):.0f})")


if __name__ == "__main__":
    main()
