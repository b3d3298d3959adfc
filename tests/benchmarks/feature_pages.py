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

import numpy as np
from wide_feature_tables import wide_tables

from gsae_ray.feature_tables import FeatureTables
from gsae_ray.features.matching import Matches
from gsae_ray.features.page import Other, data_of, page_of, script_of

PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


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
    tables = wide_tables(arguments.width, arguments.contexts, arguments.window)
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
