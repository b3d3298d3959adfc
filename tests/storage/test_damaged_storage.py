"""Whatever file of a storage is damaged, and however: it is made again as it was, or one line names it."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from damage import COMMON
from selection import quick
from trainers import WALL_CLOCK, make
from trials import FINGERPRINT, REQUEST, evaluation

from gsae_ray.activations.production_log import PRODUCTION_LOG, ProductionLog, damage_of_log
from gsae_ray.actors.trial_actor import SAETrial, TrialContext
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.evaluation_queue import EvaluationQueue
from gsae_ray.errors import UserError
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.saes.base import WEIGHTS_FILE
from gsae_ray.storage.driver_lock import driver_lock
from gsae_ray.storage.launch_directory import begin_launch, finish_launch, trial_folder
from gsae_ray.storage.trial_directory import Trial, TrialDirectory, forget_damaged
from gsae_ray.training.trainer import Trainer

EVERY = 64 * 4
TOKENS = 5 * EVERY
SWEEP = Sweep.model_validate(
    {
        "name": "small",
        "model": {"name": "builtin"},
        "dataset": {"name": "builtin"},
        "sites": {"layers": [1], "points": ["resid_post"]},
        "saes": [{"architecture": "gated", "widths": [32], "l1_coefficient": [1.0, 2.0]}],
        "training": {"tokens": TOKENS, "batch_size": 64, "lr": 1e-3},
    }
)


def trainers() -> list[Trainer]:
    settings: dict[str, Any] = {"tokens": TOKENS, "log_every_tokens": EVERY // 2, "checkpoint_every_tokens": EVERY}
    return [make("gated", l1=l1, **settings) for l1 in (1.0, 2.0)]


def evaluate(task: Evaluate) -> Future[Evaluation]:
    """L0 tells the SAEs apart."""
    future: Future[Evaluation] = Future()
    future.set_result(evaluation(l0=1 + sum(task.weights) % 30))
    return future


def launch(folder: Path, resume: bool = False, steps: int | None = None) -> list[str]:
    """A launch of two trials without Ray, which may end after so many intervals of each. Returns what it tells."""
    with driver_lock(folder) as driver:
        work = [(trainer, TrialDirectory(trial_folder(folder, trainer.trial))) for trainer in trainers()]
        told = forget_damaged(directory for _, directory in work)
        launch_id, notices = begin_launch(folder, SWEEP, [trainer.trial for trainer, _ in work], resume)
        record = folder / "launches" / launch_id / "record.json"
        notices += damage_of_log(record)
        PRODUCTION_LOG.write(record, PRODUCTION_LOG.read_whole(record) or ProductionLog({0: 1}))
        for trainer, directory in work:
            if not directory.done:
                directory.forget_failure()
                train(trainer, directory, driver.session, steps)
        queue = EvaluationQueue([Trial(t.trial, d) for t, d in work], REQUEST, evaluate, interval_s=0.001)
        queue.start()
        queue.finish()
        if all(directory.done for _, directory in work):
            finish_launch(folder, launch_id, driver.session)
        return [*told, *notices]


def train(trainer: Trainer, directory: TrialDirectory, session: int, steps: int | None) -> None:
    trial = SAETrial.__new__(SAETrial)
    trial.trial, trial.directory, trial.source, trial._newest_row = trainer.trial, directory, None, 0
    trial.failure, trial.stopped, trial._newest_metrics = None, None, {}
    trial.context = cast(TrialContext, SimpleNamespace(evaluate_every_tokens=None, rungs={}, metadata={}, modules={}))
    directory.begin_attempt(trainer.trial, session, pid=1, node="here")
    if (state := directory.newest_state()) is not None:
        trainer.restore(*state)
    while not trainer.done:
        if steps == 0:
            return
        trial._train(trainer)
        steps = None if steps is None else steps - 1
    trial._finish(trainer)


def outcome(folder: Path) -> list[Any]:
    """All that the storage says of the trials; wall-clock metrics aside."""
    said: list[Any] = []
    for directory in [TrialDirectory(trial_folder(folder, trainer.trial)) for trainer in trainers()]:
        directory.check_done()
        rows = [
            (row["step"], {k: v for k, v in row["metrics"].items() if k.removeprefix("train/") not in WALL_CLOCK})
            for row in directory.rows()[0]
        ]
        found = directory.evaluation(FINGERPRINT)
        assert found is not None
        said.append([(directory.path / "sae" / WEIGHTS_FILE).read_bytes(), rows, found["metrics"], directory.failure])
    return said


@pytest.fixture(scope="module")
def storages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A launch that is finished, one that was interrupted, and one in which both trials have failed."""
    folders = {name: tmp_path_factory.mktemp(name) / "small" for name in ("finished", "interrupted", "failed")}
    launch(folders["finished"])
    for name in ("interrupted", "failed"):
        launch(folders[name], steps=7)
    for folder in (folders["failed"] / "trials").iterdir():
        directory = TrialDirectory(folder)
        directory.attempt = directory.newest_attempt
        directory.fail("the loss is not finite")
    return folders


FILES = {
    "finished": [
        *("trials/*/DONE", "trials/*/trial.json", "trials/*/attempts/1.json", "trials/*/metrics-1.jsonl"),
        *("trials/*/sae/cfg.json", f"trials/*/sae/{WEIGHTS_FILE}", "trials/*/evaluations/*.json"),
        *("launches/*/launch.json", "launches/*/sweep.yaml", "launches/*/versions.json", "launches/*/record.json"),
        *("launches/*/DONE", "drivers/1.json"),
    ],
    "interrupted": [
        *("trials/*/trial.json", "trials/*/attempts/1.json", "trials/*/metrics-1.jsonl"),
        *("trials/*/checkpoints/768/state.safetensors", "trials/*/checkpoints/768/manifest.json"),
        *("trials/*/checkpoints/*/state.safetensors", "trials/*/checkpoints/*/manifest.json"),
    ],
    "failed": ["trials/*/FAILED"],
}
CASES = [(storage, files) for storage, patterns in FILES.items() for files in patterns]


@pytest.mark.parametrize("damage", quick(COMMON, lambda name: name in ("truncated", "deleted")))
@pytest.mark.parametrize(("storage", "files"), CASES, ids=[f"{storage}-{files}" for storage, files in CASES])
def test_what_is_damaged_is_made_again_or_named_in_a_line(
    storages: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    storage: str,
    files: str,
    damage: str,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no machine crashes here, and it takes most of the time
    folder = tmp_path / "small"
    shutil.copytree(storages[storage], folder)
    damaged = sorted(folder.glob(files))
    assert damaged
    for path in damaged:
        COMMON[damage](path)
        if path.parent.name == "drivers" and path.exists():
            os.utime(path, (0, 0))  # a new one may be being written, and is waited for
    for resume in (True, False):
        try:
            launch(folder, resume)
        except UserError as error:
            assert "\n" not in str(error)
            assert resume and files == "launches/*/launch.json"
            assert str(damaged[0]) in str(error) or damage == "deleted", error
    assert outcome(folder) == outcome(storages["finished"])


def test_every_file_of_a_storage_is_among_those_that_are_damaged(storages: dict[str, Path]) -> None:
    for storage, folder in storages.items():
        found = {path for path in folder.rglob("*") if path.is_file()}
        known = {path for of in (storage, "finished") for files in FILES[of] for path in folder.glob(files)}
        known |= set((folder / "trials").glob("*/checkpoints/*/*"))
        assert found <= known
