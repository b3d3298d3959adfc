"""Python environments of tests and benchmarks that need what clashes with our own pins."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def environment(requirements: Sequence[str], root: Path, without: Sequence[str] = ()) -> Path:
    """The Python of a virtual environment with `requirements`, made under `root` at the first use.

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
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        if without:
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *without], check=True)
        ready.touch()
    return python


def run_in(python: Path, script: Path, *arguments: str | Path) -> None:
    """Runs a script in an environment, which sees nothing of ours.

    Raises:
        subprocess.CalledProcessError: it fails (its output is shown).
    """
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([python, script, *arguments], check=True, env=own)
