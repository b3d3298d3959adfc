"""How many trials one activation store serves: the real store actor, real calls, and no array data.

    python tests/benchmarks/store_scale.py [--trials N ...] [--producers P] [--processes C] [--seconds S] [--pace S ...]

Producers are processes that answer at once with objects of no size. Trials are coroutines in a few processes; each
calls as `StoreBlockReader` does: attach, a heartbeat every BEAT_S, one lease a block. They begin at various blocks, as
those of a resumed sweep do; one that has read its last block releases, attaches again, and begins at the first. Easier
than in a sweep: trials of a process share what they borrow from the store, and a chunk is never fetched.

Result (2026-11-24, 64 producers of 61 MB each, 4 processes of trials, 20 s a row, 2 cores that all of them and other
work shared (load 2 to 67, and Ray runs actors at nice 15), python 3.11.7, ray 2.60.0, gsae-ray 0.1.0):

    trials pace budget lease/s lease p50 lease p99 beat/s beat p50 beat p99 wait CPU % ms/call   MB attach lapses
       100    0    all     244       398       853     33      441      868    0    56    2.02  340    0.1      0
       100    0   10 %     313       328       524     33      344      514    0    66    1.90  337    0.1      0
       300    0    all     265      1156      1339    100     1161     1339    0    65    1.79  349    0.3      0
       300    0   10 %     291      1059      6686     98     1080     1528   11    66    1.70  350    0.4      0
      1000    0    all     180      5368      6254    324     5389     6250    0    64    1.26  408    1.6      0
      1000    0   10 %     178      3539     25467    305     3528     4640  350    64    1.32  412    1.3      0
      3000    0    all      66     30461     42598    434    32923    45196    0    55    1.10 1368    5.1    388
      3000    0   10 %      48     26823     51164    550    26497    33096 1368    59    0.99 1180   10.6     34
       100   30    all       3         3        20     33        2       13    0     5    1.47  331    0.1      0
       100   30   10 %       3         3        26     33        2       19    0     5    1.45  330    0.1      0
       300   30    all      10         5        95     99        3       82    0    12    1.14  338    0.3      0
       300   30   10 %       6         7     21904    100        4       70  141    12    1.10  343    0.3      0
      1000   30    all      33        21       330    335       88      332    0    31    0.85  365    1.6      0
      1000   30   10 %      15        14       258    333       23      257  502    32    0.92  386    1.9      0
      3000   30    all      20     36273     38477    556    32580    38420    0    56    0.97 1198   15.7     96
      3000   30   10 %      10     41446     45269    588    35886    44955 1461    56    0.93 1404   16.9     96

pace: seconds from a lease to the next. budget: of the 200 blocks. Latencies in ms; a lease's may be a wait for a
production or for room, a heartbeat's is the store's own. wait: trials that wait for a block, at a look of the driver's.
CPU: of the store's process, 100 % is one core. attach: seconds until all trials had their statistics. lapses: trials
taken for hung since the start.

What bounds it is Ray's cost of a call to an asyncio actor, 0.8 to 2 ms of CPU; `ActivationStore` itself, driven without
Ray, takes 0.04 to 0.25 ms. Trials at a real pace make ten times more heartbeats than leases: 1,000 take a third of a
core. 3,000 ask for 1,100 calls a second, about one core. Here the store got 0.56 of one, answers came after 35 s, and
live trials lapsed at the start; with 0.7 of one (another run) it answered 960 a second, after 9 s, and none lapsed.
Not measured: more than 10,000 unanswered calls (`max_concurrency`) would keep heartbeats and looks out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import logging
import os
import platform
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any

import numpy as np
import psutil
import ray

import gsae_ray
from gsae_ray.activations.layout import Layout

BLOCKS, SITES, CHUNKS = 200, 8, 4
"""Chunks: of a block at a site."""
ROWS, WIDTH = 1_000_000, 2048
"""Of a block, of a site; they decide nothing but the unit of the budget."""
FIRST_BLOCKS = 40
"""Trials begin at the first of these, the second, and so on."""
BUDGETS = {"all": BLOCKS, "10 %": BLOCKS // 10}
"""In blocks."""
PACES_S = (0.0, 30.0)
"""From a lease to the next; 0: as fast as the store answers."""
TIMEOUT_S = 120.0
"""A store that is silent for longer has broken."""
SETTLE_S = 5.0
LATENCIES = {"lease": (50, 99), "beat": (50, 99), "look": (50, 100)}
"""Method -> the percentiles to show, in ms. A lease may wait for a production or for room, the others do not."""


class LightProducer:
    """A `ProducerActor` without a model, in a process that does not import torch."""

    def ready(self) -> str:
        return "nowhere"

    def produce(self, block: int, sites: Sequence[str], _store: Any) -> list[Any]:
        return [dict.fromkeys(sites, b"statistics") if block == 0 else {}, *[b""] * (len(sites) * CHUNKS)]


class Trials:
    """Trials in one process."""

    def __init__(self, store: Any, first_blocks: dict[str, int], pace_s: float, beat_s: float) -> None:
        self.store, self.first_blocks, self.pace_s, self.beat_s = store, first_blocks, pace_s, beat_s
        self.attempts = dict.fromkeys(first_blocks, 1)
        self.calls: dict[str, list[tuple[float, float]]] = {"lease": [], "beat": []}
        """Method -> (when, after how many seconds) of each answer."""
        self.errors: Counter[str] = Counter()
        self.tasks: set[asyncio.Task[Any]] = set()

    async def attach(self) -> None:
        """Returns when all have their statistics."""
        for name in self.first_blocks:
            self._spawn(self._beat(name))
        await asyncio.gather(*(self.store.call.remote("attach", name, 1) for name in self.first_blocks))

    async def read(self) -> None:
        for name, block in self.first_blocks.items():
            self._spawn(self._read(name, block))

    async def measured(self) -> tuple[dict[str, list[tuple[float, float]]], Counter[str]]:
        return self.calls, self.errors

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors[type(error).__name__] += 1

    async def _beat(self, name: str) -> None:
        await asyncio.sleep(random.random() * self.beat_s)
        while True:  # as `StoreBlockReader` does, whether the one before has been answered or not
            self._spawn(self._timed("beat", self.store.call.remote("beat", name, self.attempts[name])))
            await asyncio.sleep(self.beat_s)

    async def _read(self, name: str, block: int) -> None:
        first_s = random.random() * self.pace_s  # so that trials are out of step
        while True:
            while block < BLOCKS:
                refs = await self._timed("lease", self.store.call.remote("lease", name, self.attempts[name], block))
                assert len(refs) == CHUNKS
                await asyncio.sleep(first_s or self.pace_s)
                del refs
                block, first_s = block + 1, 0.0
            await self.store.call.remote("release", name, self.attempts[name], True)
            self.attempts[name] += 1
            await self.store.call.remote("attach", name, self.attempts[name])
            block = 0

    async def _timed(self, method: str, answer: Awaitable[Any]) -> Any:
        began = time.time()
        result = await answer
        self.calls[method].append((time.time(), time.time() - began))
        return result


@contextlib.contextmanager
def light_producers(count: int) -> Iterator[list[Any]]:
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}  # of `running_producers`
    actor = ray.remote(LightProducer).options(**options)
    producers = [actor.remote() for _ in range(count)]
    try:
        ray.get([producer.ready.remote() for producer in producers])
        yield producers
    finally:
        for producer in producers:
            ray.kill(producer)


class Watch:
    """The driver's looks at a store, and the clocks of its process."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.process = psutil.Process(ray.get(store.__ray_call__.remote(lambda _: os.getpid())))
        self.peak_bytes = 0
        self.lapses = 0
        self.produced = 0
        self.begin()

    def begin(self) -> None:
        """From here on it counts; lapses and memory do from the start."""
        self.began, self.cpu_s, self.threads_s = time.time(), self._cpu_seconds(), self._thread_seconds()
        self.taken_s: list[float] = []
        self.waits: Counter[str] = Counter()

    def look(self) -> None:
        began = time.time()
        look = ray.get(self.store.report.remote(), timeout=TIMEOUT_S)
        self.taken_s.append(time.time() - began)
        self.lapses += sum("is silent" in event for event in look.events)
        self.waits.update(re.sub("trial.*", "…", wait.reason) for wait in look.waits)
        self.produced = sum(look.record.produced.values())
        self.peak_bytes = max(self.peak_bytes, self.process.memory_info().rss)

    def end(self) -> dict[str, Any]:
        wall_s, threads_s = time.time() - self.began, self._thread_seconds()
        busiest_s = max(s - self.threads_s.get(thread, 0.0) for thread, s in threads_s.items())
        return {
            "wall s": wall_s,
            "CPU s": self._cpu_seconds() - self.cpu_s,
            "thread %": 100 * busiest_s / wall_s,
            "MB": self.peak_bytes / 1e6,
            "wait": self.waits.total() / len(self.taken_s),
            "waits": dict(self.waits),
            "produced": self.produced,
            "lapses": self.lapses,
        }

    def _cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def _thread_seconds(self) -> dict[int, float]:
        return {thread.id: thread.user_time + thread.system_time for thread in self.process.threads()}


def measure(
    producers: list[Any], trials: int, pace_s: float, budget: str, processes: int, seconds: float
) -> dict[str, Any]:
    """A row of the table: one store's life."""
    # Imported here, so that the processes of producers, which need this module, do not load torch.
    from gsae_ray.activations.trial_positions import ReaderSpec
    from gsae_ray.actors.store_actor import BEAT_S
    from gsae_ray.driver.start_actors import start_store

    sites = [f"blocks.{i}.hook_resid_post" for i in range(SITES)]
    layout = Layout((ROWS,) * BLOCKS, dict.fromkeys(sites, WIDTH), "bfloat16", chunk_bytes=ROWS * WIDTH * 2 // CHUNKS)
    readers = {f"trial {i}": ReaderSpec(sites[i % SITES], ROWS * BLOCKS) for i in range(trials)}
    first = {name: i // SITES % FIRST_BLOCKS for i, name in enumerate(readers)}
    store = start_store(layout, BUDGETS[budget] * layout.nbytes(0, tuple(sites)), timeout_s=300.0)
    actor = ray.remote(Trials).options(num_cpus=0, max_concurrency=10)
    parts = [dict(list(first.items())[i::processes]) for i in range(processes)]
    groups = [actor.remote(store, part, pace_s, BEAT_S) for part in parts]
    try:
        ray.get([group.measured.remote() for group in groups])  # they are up
        ray.get(store.begin.remote(producers, readers, None))
        watch = Watch(store)
        attaching = [group.attach.remote() for group in groups]
        while ray.wait(attaching, num_returns=processes, timeout=1.0)[1]:
            watch.look()
        ray.get(attaching)
        attach_s = time.time() - watch.began
        ray.get([group.read.remote() for group in groups])
        for settle in (True, False):
            watch.begin()
            while time.time() < watch.began + (SETTLE_S if settle else seconds):
                time.sleep(1.0)
                watch.look()
        store_did = watch.end()
        results = ray.get([group.measured.remote() for group in groups], timeout=TIMEOUT_S)
    finally:
        for each in (*groups, store):
            ray.kill(each)
    taken_s, wall_s = {"look": watch.taken_s}, store_did["wall s"]
    for method in ("lease", "beat"):
        taken_s[method] = [s for calls, _ in results for end, s in calls[method] if 0 <= end - watch.began <= wall_s]
    answers = len(taken_s["lease"]) + len(taken_s["beat"])
    row: dict[str, Any] = {"trials": trials, "pace": pace_s, "budget": budget, "attach": attach_s} | store_did
    row["CPU %"] = 100 * row["CPU s"] / row["wall s"]
    row["ms/call"] = 1000 * row["CPU s"] / max(answers, 1)
    for method, percents in LATENCIES.items():
        row[f"{method}/s"] = len(taken_s[method]) / row["wall s"]
        for percent in percents:
            row[f"{method} p{percent}"] = 1000 * float(np.percentile(taken_s[method] or [np.nan], percent))
    row["errors"] = dict(sum((errors for _, errors in results), Counter()))
    return row


SHOWN = {
    "trials": "{:d}",
    "pace": "{:.0f}",
    "budget": "{}",
    "lease/s": "{:.0f}",
    "lease p50": "{:.0f}",
    "lease p99": "{:.0f}",
    "beat/s": "{:.0f}",
    "beat p50": "{:.0f}",
    "beat p99": "{:.0f}",
    "wait": "{:.0f}",
    "CPU %": "{:.0f}",
    "ms/call": "{:.2f}",
    "MB": "{:.0f}",
    "attach": "{:.1f}",
    "lapses": "{:d}",
}
"""The table's columns; the rest of a row is in the JSON."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 300, 1000, 3000])
    parser.add_argument("--producers", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4, help="that the trials are spread over")
    parser.add_argument("--seconds", type=float, default=30.0, help="of measuring, a row")
    parser.add_argument("--pace", type=float, nargs="+", default=PACES_S, help="seconds from a lease to the next")
    args = parser.parse_args()
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, **options)
    rows = []
    with light_producers(args.producers) as producers:
        print(" ".join(f"{name:>4}" for name in SHOWN))
        for pace_s in args.pace:
            for trials in args.trials:
                for budget in BUDGETS:
                    try:
                        row = measure(producers, trials, pace_s, budget, args.processes, args.seconds)
                    except ray.exceptions.GetTimeoutError:
                        print(f"{trials} trials, pace {pace_s:g}, budget {budget}: no answer in {TIMEOUT_S:g} s")
                        continue
                    rows.append(row)
                    cells = (f"{form.format(row[name]):>{max(len(name), 4)}}" for name, form in SHOWN.items())
                    print(*cells, row["errors"] or "")
    versions = {"gsae-ray": gsae_ray.__version__, "ray": ray.__version__, "python": platform.python_version()}
    setting = {"producers": args.producers, "processes": args.processes, "seconds": args.seconds}
    machine = {"cores": os.cpu_count(), "date": datetime.date.today().isoformat()}
    rounded = [{n: round(v, 2) if isinstance(v, float) else v for n, v in row.items()} for row in rows]
    print(json.dumps(versions | machine | setting | {"rows": rounded}))


if __name__ == "__main__":
    main()
