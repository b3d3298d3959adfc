"""A sweep file to override."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_texts import TEXT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(TEXT)
    return path
