"""A saved model, a copy of it to change, and a hub that is not asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from saved_models import SIZE, save
from transformers import LlamaConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny", LlamaConfig(**SIZE))


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """A copy to change at will."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read once, at import
