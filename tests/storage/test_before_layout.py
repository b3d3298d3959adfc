"""A launch that was begun before the package had rooms goes on: what was done stays, what was begun ends as it would.

`before_layout.tar.gz` was written at commit 484d37a: of three trials one is done and evaluated, one stopped after its
second checkpoint, one has not begun.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from golden_machine import is_golden

from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.storage.launch_directory import begin_launch, trial_folder
from gsae_ray.storage.trial_directory import Trial, TrialDirectory
from gsae_ray.training.trainer import Trainer


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("before_layout.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def plan(storage: Path) -> PreparedSweep:
    (file,) = (storage / "before/launches").glob("*/launch.json")
    sweep = Sweep.model_validate(json.loads(file.read_text())["sweep"])
    return prepare(sweep, storage)


def test_a_launch_begun_before_the_layout_goes_on(storage: Path, plan: PreparedSweep) -> None:
    """Same identities, same evaluation, same weights as a trial that nobody interrupted."""
    golden = is_golden()  # as the archive's checkpoint was made
    folder = storage / "before"
    (launch,) = (path.name for path in (folder / "launches").iterdir())
    assert begin_launch(folder, plan.sweep, plan.trials, resume=True)[0] == launch
    trials = [Trial(spec, TrialDirectory(trial_folder(folder, spec))) for spec in plan.trials]
    states = [trial.directory.status(plan.evaluation) for trial in trials]
    assert [state.evaluated for state in states] == [True, False, False]
    assert states[0].outdated == (None, 2), "it has no densities yet, and is evaluated again"
    done, waiting, begun = trials
    assert done.directory.check_done() is not None
    assert [row["step"] for row in done.directory.rows()[0]] == list(range(512, 4097, 512))
    assert waiting.directory.newest_attempt == 0 and begun.directory.newest_attempt == 1

    producer = Producer(producer_spec(plan))

    def trainer() -> Trainer:
        site = begun.spec.site
        return Trainer(begun.spec, RowStream(LocalBlockReader(producer, site), plan.layout, site))

    begun.directory.begin_attempt(begun.spec, session=2)
    state = begun.directory.newest_state()
    assert state is not None
    resumed, fresh = trainer(), trainer()
    resumed.restore(*state)
    assert resumed.tokens == 2048
    for one in (resumed, fresh):
        while not one.done:
            one.train_interval()
    begun.directory.finish(resumed.finished_sae({}))
    saved = safetensors.torch.load_file(begun.directory.path / "sae/sae_weights.safetensors")
    for name, expected in fresh.finished_sae({}).state_dict().items():
        if golden:
            assert torch.equal(saved[name], expected), name
        else:
            torch.testing.assert_close(saved[name], expected, rtol=1e-3, atol=1e-4)
