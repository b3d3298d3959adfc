"""A sweep's folder in storage: one driver at a time, and what each launch was.

driver.json                     the driver that runs, with a heartbeat
launches/{id}/launch.json       the sweep, resolved, and its trials
launches/{id}/sweep.yaml        the same to read, versions.json, frontier.csv, frontier.png, pursuit.csv
trials/{name}-{identity}/       see `training.directory`
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

import gsae_ray
from gsae_ray.errors import UserError
from gsae_ray.files import read_json, write_atomically, write_json
from gsae_ray.sweep import Sweep
from gsae_ray.trial import TrialSpec

LOCK_HEARTBEAT_S = 5.0
LOCK_STALE_S = 30.0
OPERATIONAL = {
    *("producers.count", "producers.budget_gib", "producers.chunk_mib", "producers.timeout_s"),
    "trials.max_concurrent",
}
"""Keys that may differ when a launch is resumed: they change no result."""


@contextlib.contextmanager
def driver_lock(folder: Path) -> Iterator[None]:
    """One driver at a time for a sweep's folder; a heartbeat tells a live one from a dead one's remains."""
    path = folder / "driver.json"
    mine = {"host": socket.gethostname(), "pid": os.getpid()}
    folder.mkdir(parents=True, exist_ok=True)
    other = read_json(path)
    if other is not None and not (time.time() - other["heartbeat"] < LOCK_STALE_S and _alive(other)):
        path.unlink(missing_ok=True)  # what a driver that was killed left behind
    try:
        with path.open("x") as file:
            json.dump({**mine, "heartbeat": time.time()}, file)
    except FileExistsError:
        other = read_json(path) or {"host": "?", "pid": "?"}
        raise UserError(
            f"{folder}: another driver (process {other['pid']} on {other['host']}) runs this sweep; wait for it, stop "
            "it, or give this sweep another name or --storage"
        ) from None
    done = threading.Event()

    def beat() -> None:
        while not done.wait(LOCK_HEARTBEAT_S):
            with contextlib.suppress(OSError):
                write_json(path, {**mine, "heartbeat": time.time()})

    thread = threading.Thread(target=beat, name="driver-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        path.unlink(missing_ok=True)


def _alive(driver: dict[str, Any]) -> bool:
    """Whether a driver's process is there; on another host only its heartbeat can tell."""
    if driver["host"] != socket.gethostname():
        return True
    try:
        os.kill(driver["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def begin_launch(folder: Path, sweep: Sweep, trials: Sequence[TrialSpec], resume: bool) -> str:
    """Writes down a new launch, or finds the one to resume. Returns its id."""
    description = json.loads(sweep.model_dump_json())
    launches = folder / "launches"
    if resume:
        earlier = sorted(p for p in launches.glob("*/launch.json")) if launches.exists() else []
        if not earlier:
            raise UserError(f"--resume: no launch of {sweep.name!r} in {folder.parent}; run it without --resume")
        before = json.loads(earlier[-1].read_text())["sweep"]
        changed = sorted(set(_differences(before, description)) - OPERATIONAL)
        if changed:
            raise UserError(
                f"--resume: the sweep file has changed since launch {earlier[-1].parent.name}: {', '.join(changed)}; "
                "change it back, or run without --resume (trials that are done are not trained again)"
            )
        return earlier[-1].parent.name
    launch_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    target = launches / launch_id
    target.mkdir(parents=True)
    write_json(target / "versions.json", versions())
    write_atomically(target / "sweep.yaml", yaml.safe_dump(description, sort_keys=False).encode())
    write_json(target / "launch.json", {"sweep": description, "trials": [trial.name for trial in trials]})
    return launch_id


def trial_folder(folder: Path, trial: TrialSpec) -> Path:
    """Where a trial keeps its state: by identity, since names tell only what differs within one file."""
    trials = folder / "trials"
    found = sorted(trials.glob(f"*-{trial.identity[:8]}"))
    return found[0] if found else trials / trial.directory_name


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Dotted keys at which two JSON values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path


def versions() -> dict[str, str]:
    """What the numbers of a launch depend on besides its settings."""
    names = ("torch", "transformers", "ray", "mlflow", "datasets", "numpy")
    return {
        "gsae-ray": gsae_ray.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        **{name: importlib.metadata.version(name) for name in names},
    }
