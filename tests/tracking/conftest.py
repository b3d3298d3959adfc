"""An MLflow that keeps its runs in a file, and an experiment there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mirrors import Server
from mlflow_stores import new_store


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow puts the artifacts of an SQLite store into the working directory
        yield new_store(folder)


@pytest.fixture
def server(uri: str) -> Server:
    return Server(uri)
