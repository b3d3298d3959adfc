"""A store that has been recorded to."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from recorder import GATED_1, GATED_2, NEWER, OLDER, STANDARD_1, Recorder, ends


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    """An older launch of two trials, and a newer one of all kinds."""
    recorder = Recorder(tmp_path_factory.mktemp("results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recorder.folder)  # MLflow puts the artifacts of an SQLite store into the working directory
        patch.setenv("MLFLOW_TRACKING_URI", recorder.uri)
        recorder.record("sweep", OLDER, list(zip(GATED_1[:3], ends((9, 0.85), (19, 0.86), (29, 0.87)), strict=True)))
        recorder.record(
            "sweep",
            NEWER,
            [
                *zip(GATED_1[1:], ends((40, 0.96), (20, 0.90), (30, 0.89)), strict=True),
                *zip(STANDARD_1, ends((45, 0.95)), strict=True),
                *zip(GATED_2, [*ends((12, 0.80), (0, 0.5), (8, math.nan)), "failed"], strict=True),
                (GATED_1[0], "running"),
            ],
        )
        yield recorder
