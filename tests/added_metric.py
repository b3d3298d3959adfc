"""A metric that comes from outside the package, for tests of what has to know of it."""

from __future__ import annotations

import numpy as np
import pytest

from gsae_ray.evaluation.metrics import METRICS, Array, Sums, metric, schema_version


def added_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds `norm_ratio`, that no evaluation of before carries, until the test ends."""
    since = schema_version() + 1
    monkeypatch.setitem(METRICS, "norm_ratio", METRICS["gamma"])  # so that it goes again
    del METRICS["norm_ratio"]

    @metric("E‖x̂‖² / E‖x‖²", since=since, table=True)
    def norm_ratio(s: Sums) -> Array:
        return np.asarray(s["x_hat_sq"] / s["x_sq"])
