"""What `plan` says of `model.dtype` where the language model runs on CPUs."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from nodes import sweep

from gsae_ray.capacity import duration
from gsae_ray.capacity.dtypes import describe, dtype_notices, product_times
from gsae_ray.capacity.duration import pace
from gsae_ray.capacity.forecast import forecast

WITH = {"float32": 1.0, "bfloat16": 0.456, "float16": 5.81}
"""Times on a processor with products of bfloat16."""
WITHOUT = {"float32": 1.0, "bfloat16": 2.31, "float16": 6.2}


@pytest.mark.parametrize(
    ("dtype", "times", "parts"),
    [
        ("float32", WITH, ["bfloat16 would take about 0.46 x the time of float32", "half the memory"]),
        ("bfloat16", WITHOUT, ["bfloat16 takes about 2.3 x the time of float32", "take float32"]),
        ("float16", WITH, ["float16 takes about 5.8 x the time of float32", "take bfloat16 (0.46 x) or float32"]),
        ("float16", WITHOUT, ["float16 takes about 6.2 x the time of float32", "take float32"]),
    ],
)
def test_one_line_names_the_key_the_time_and_the_remedy(
    dtype: str, times: Mapping[str, float], parts: list[str]
) -> None:
    (line,) = describe(dtype, times)
    assert line.startswith("model.dtype: ")
    assert all(part in line for part in parts)


@pytest.mark.parametrize(
    ("dtype", "times"),
    [
        ("bfloat16", WITH),
        ("float32", {"float32": 1.0, "bfloat16": 1.05}),
        ("float32", WITHOUT),
        ("float16", {"float32": 1.0, "bfloat16": 0.5, "float16": 0.5}),  # with AVX512-FP16
    ],
)
def test_there_is_no_line_where_there_is_nothing_to_mend(dtype: str, times: Mapping[str, float]) -> None:
    assert describe(dtype, times) == []


def test_products_are_measured_on_this_machine() -> None:
    times = product_times("float16")
    assert times["float32"] == 1
    assert times.keys() == {"float32", "bfloat16", "float16"} and min(times.values()) > 0


def test_plan_tells_it_of_producers_on_cpus_only() -> None:
    on_cpus = sweep(model={"name": "builtin", "dtype": "float16"})
    expected = describe("float16", product_times("float16"))
    assert dtype_notices(on_cpus) == expected
    assert set(expected) <= set(forecast(on_cpus, slots=1).notices)
    assert dtype_notices(sweep(model={"name": "builtin", "dtype": "float16"}, producers={"gpus": 1})) == []


def test_the_time_of_producers_on_cpus_is_that_of_their_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duration, "_core_flops", lambda: 1e9)
    found = {
        dtype: pace(sweep(model={"name": "builtin", "dtype": dtype}), None, [[1.0]], 1e12, slots=1, gpus_a_trial=0)
        for dtype in ("float32", "float16")
    }
    seconds = {dtype: made.model_s for dtype, made in found.items() if made is not None}
    assert seconds["float16"] / seconds["float32"] == pytest.approx(product_times("float16")["float16"])
