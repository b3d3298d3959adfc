"""Text to prepare, a place for what is prepared, and a data set that has splits."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from prepared import DOCUMENTS, write_jsonl


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "text.jsonl", DOCUMENTS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture
def with_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set that has splits, as those of the hub have."""
    (tmp_path / "corpus").mkdir()
    for split, rows in (("train", DOCUMENTS[:80]), ("test", DOCUMENTS[80:])):
        datasets.Dataset.from_dict({"text": rows}).to_csv(tmp_path / "corpus" / f"{split}.csv")
    monkeypatch.chdir(tmp_path)
    return "corpus"
