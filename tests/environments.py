"""Python environments of tests and benchmarks that need what clashes with our own pins."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NEIGHBOURS = ("sae-lens==6.54.12", "dictionary-learning==0.1.0", "eai-sparsify==1.3.3", "transformer-lens==3.9.0")
"""The libraries that read and write SAEs and checkpoints as we do; they agree on one environment.

Version 4 of TransformerLens has no HookedTransformer.
"""
CIRCUIT_TRACER = "circuit-tracer==0.5.0"
"""Which wants an older transformers, and so an environment of its own."""
TRITON = "triton==3.7.1"
"""That of torch 2.13; builds of torch for CUDA bring it, those for CPUs do without."""


def neighbours(root: Path) -> Path:
    """The Python of an environment with `NEIGHBOURS` and a torch of our range; see `environment`."""
    # torchvision comes with nnsight; built for CUDA, it does not load beside a torch without, and nothing needs it.
    return environment([*NEIGHBOURS, "torch>=2.11,<2.14"], root, without=["torchvision"])


def environment(requirements: Sequence[str], root: Path, without: Sequence[str] = ()) -> Path:
    """The Python of a virtual environment with `requirements`, made under `root` at the first use, by one process.

    Args:
        requirements: as pip takes them.
        root: folder of environments.
        without: packages that come with them, and are in the way.

    Raises:
        subprocess.CalledProcessError: pip cannot install them (its output is shown).
    """
    key = hashlib.sha256("\n".join([sys.version, *requirements, *without]).encode()).hexdigest()[:16]
    directory = root / key
    python, ready = directory / "bin" / "python", directory / "ready"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
            # Of thirty thousand modules a tenth is imported: those are compiled then (see `run_in`).
            subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", *requirements], check=True)
            if without:
                subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *without], check=True)
            ready.touch()
    return python


def folder_of(requirement: str, root: Path) -> Path:
    """A folder with one package, without what it depends on, to be put on PYTHONPATH: for Pythons that are ours.

    Args:
        requirement: as pip takes it.
        root: folder of folders; it is made there at the first use, by one process.

    Raises:
        subprocess.CalledProcessError: pip cannot install it (its output is shown).
    """
    directory = root / requirement
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "ready").exists():
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
            subprocess.run([*install, "--upgrade", "--target", directory, requirement], check=True)
            (directory / "ready").touch()
    return directory


def run_in(python: Path, script: Path, *arguments: str | Path) -> None:
    """Runs a script in an environment, which sees nothing of ours.

    Raises:
        subprocess.CalledProcessError: it fails (its output is shown).
    """
    outer = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    own = {name: value for name, value in os.environ.items() if name not in outer}
    subprocess.run([python, script, *arguments], check=True, env=own)
