"""SQLite stores of MLflow: copies of one, since MLflow takes seconds to make a database."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from mlflow.tracking import MlflowClient


def new_store(folder: Path) -> str:
    """The address of `mlflow.db` in a folder; an empty store, where there is no such file yet."""
    file = folder / "mlflow.db"
    if not file.exists():
        file.write_bytes(_empty())
    return f"sqlite:///{file}"


@functools.cache
def _empty() -> bytes:
    """A database as MLflow makes it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        MlflowClient(f"sqlite:///{file}").search_experiments()
        return file.read_bytes()
