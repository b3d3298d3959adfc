"""`engine: auto` is one engine from the beginning of a launch on, and stays that of a sweep that goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_texts import TEXT, error_of, expand, load_text

from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import prepare
from gsae_ray.errors import UserError
from gsae_ray.files import SEAL
from gsae_ray.storage.launch_directory import begin_launch, check_resume

AUTO = TEXT.replace("lr: 1e-3}", "lr: 1e-3, engine: auto}")


def resolved(sweep: Sweep, folder: Path) -> tuple[Sweep, list[str]]:
    """As `prepare` resolves it, and what it says."""
    said: list[str] = []
    return prepare._with_engine(sweep, folder, said.append), said


def engines(sweep: Sweep) -> list[str]:
    return [entry.training(sweep.training).engine for entry in sweep.saes]


def test_trials_on_cpus_get_the_sparse_engine_and_others_the_dense_one(tmp_path: Path) -> None:
    sweep, said = resolved(load_text(tmp_path, AUTO), tmp_path)
    assert engines(sweep) == ["sparse-cpu"] * 2
    assert said == []
    sweep, _ = resolved(load_text(tmp_path, AUTO, "trials.gpus=1"), tmp_path)
    assert engines(sweep) == ["dense"] * 2


def test_only_what_is_open_is_resolved(tmp_path: Path) -> None:
    sweep, _ = resolved(load_text(tmp_path, AUTO, "saes.0.engine=dense"), tmp_path)
    assert engines(sweep) == ["dense", "sparse-cpu"]
    both = load_text(tmp_path, AUTO, "saes.0.engine=dense", "saes.1.engine=dense")
    assert resolved(both, tmp_path)[0].training.engine == "sparse-cpu", "written down, though no entry is left"
    message = error_of(tmp_path / "text.yaml", "saes.1.engine=auto")
    assert message.endswith("saes.1.engine: auto is for the whole sweep: training.engine")
    assert resolved(load_text(tmp_path, TEXT), tmp_path) == (load_text(tmp_path, TEXT), [])


def test_its_trials_are_those_of_the_engine_named(tmp_path: Path) -> None:
    auto, named = (load_text(tmp_path, AUTO, *more) for more in ([], ["training.engine=sparse-cpu"]))
    identities = [[trial.identity for trial in expand(sweep)] for sweep in (auto, named, load_text(tmp_path, TEXT))]
    assert identities[0] == identities[1]
    assert not set(identities[0]) & set(identities[2])


def test_a_sweep_keeps_the_engine_of_its_newest_launch(tmp_path: Path) -> None:
    """Also where that launch is from before there was another engine: trials that are done are not trained again."""
    folder, auto = tmp_path / "runs" / "test", load_text(tmp_path, AUTO)
    dense = auto.with_engine("dense")
    launch, _ = begin_launch(folder, dense, expand(dense), False)
    sweep, said = resolved(auto, folder)
    assert engines(sweep) == ["dense"] * 2
    assert said == ["training.engine: auto is dense, as in the launch before"]
    check_resume(folder, sweep, expand(sweep), True)
    path = folder / "launches" / launch / "launch.json"
    written = json.loads(path.read_text())
    del written["sweep"]["training"]["engine"], written["sweep"]["training"]["precision"], written[SEAL]
    path.write_text(json.dumps(written))
    assert resolved(auto, folder)[0] == sweep
    check_resume(folder, sweep, expand(sweep), True)
    path.write_text(json.dumps({**written, "revision": 1}))  # whose trials are all trained anew
    assert engines(resolved(auto, folder)[0]) == ["sparse-cpu"] * 2
    path.write_text("{")  # not to be read
    assert engines(resolved(auto, folder)[0]) == ["sparse-cpu"] * 2


def test_without_a_compiler_a_first_launch_is_dense_and_one_that_was_sparse_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        if name == "sparse-cpu":
            raise UserError("training.engine: sparse-cpu: Numba cannot be loaded")

    monkeypatch.setattr(prepare, "check_engine", broken)
    auto = load_text(tmp_path, AUTO)
    sweep, said = resolved(auto, tmp_path / "first")
    assert engines(sweep) == ["dense"] * 2
    assert said == ["training.engine: sparse-cpu: Numba cannot be loaded; training.engine: auto is dense"]
    sparse = auto.with_engine("sparse-cpu")
    begin_launch(tmp_path / "second", sparse, expand(sparse), False)
    with pytest.raises(UserError, match="Numba cannot be loaded"):
        resolved(auto, tmp_path / "second")


COMPILE = """
import ray
from gsae_ray.driver.ray_session import connected
from gsae_ray.driver.warm_up import start_compiling
from gsae_ray.training.engines.compiled import holds_kernels
with connected(None):
    assert start_compiling(["dense"]) == []
    assert not holds_kernels()
    (compiling,) = start_compiling(["dense", "sparse-cpu"])
    ray.get(compiling)
    assert holds_kernels()
    assert start_compiling(["sparse-cpu"]) == []
"""


@pytest.mark.slow
def test_kernels_are_compiled_before_trials_start(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True, timeout=250)
