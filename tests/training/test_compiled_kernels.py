"""Where compiled kernels lie, who compiles them, and what is said where nothing can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gsae_ray.errors import UserError
from gsae_ray.training import engines
from gsae_ray.training.engines import compiled, make_engine


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    """Its modules are there, to be taken away."""
    make_engine("sparse-cpu", 1)


def test_a_compiler_that_cannot_be_loaded_is_named_with_what_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("compiled", "kernels", "feature_sums", "candidates", "fused_adam", "sparse_cpu"):
        monkeypatch.delitem(sys.modules, f"{engines.__name__}.{module}")
        monkeypatch.delattr(engines, module)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(UserError, match=r"training\.engine: sparse-cpu: Numba, .* cannot be loaded: .*engine: dense"):
        make_engine("sparse-cpu", 1)


@pytest.mark.slow
def test_a_sweep_of_dense_engines_does_without_it() -> None:
    code = "import sys; sys.modules['numba'] = None; import gsae_ray.driver.launch, gsae_ray.actors.trial_actor"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.slow
def test_processes_that_begin_together_compile_one_after_the_other(tmp_path: Path) -> None:
    """With an empty cache of their own."""
    script = """
from gsae_ray.training.engines import make_engine
make_engine("sparse-cpu", 1)
from gsae_ray.training.engines.fused_adam import adam
print(sum(adam.stats.cache_misses.values()), sum(adam.stats.cache_hits.values()))
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = sorted(process.communicate(timeout=200)[0].split() for process in processes)
    assert found == [["0", "1"], ["1", "0"]], "one has compiled, the other has loaded"


def test_compiled_kernels_lie_where_nobody_else_can_put_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    find = compiled.cache_directory.__wrapped__
    own = find()
    assert own is not None and own.is_relative_to(tmp_path / "cache" / "gsae-ray" / "kernels")
    assert own.stat().st_mode & 0o077 == 0
    own.parents[1].chmod(0o777)  # others may put another folder in its place
    second = find()
    assert second is not None and second.is_relative_to(tmp_path / "home" / ".cache")
    second.chmod(0o770)
    third = find()
    assert third is not None and third.is_relative_to(tmp_path / "temporary")
    (tmp_path / "temporary").chmod(0o1777)  # as the system's own: what lies in it stays its owner's
    assert find() == third
    third.parent.chmod(0o777)
    assert find() is None


def test_a_process_without_a_home_compiles_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    found = compiled.cache_directory.__wrapped__()
    assert found is not None and found.is_relative_to(tmp_path)
