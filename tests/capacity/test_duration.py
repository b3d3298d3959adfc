"""How long a sweep takes, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from nodes import HEAD, PLAIN, PRODUCERS, sweep, with_gpu

from gsae_ray.capacity.duration import EFFICIENCY, pace
from gsae_ray.capacity.nodes import Node


def test_waves_and_producers_work_beside_each_other() -> None:
    on_gpus = sweep(trials={"gpus": 0.25}, producers={"gpus": 1, "count": 2}, model={"name": "x", "dtype": "bfloat16"})
    nodes = [HEAD, Node({**PRODUCERS.resources, "accelerator_type:L4": 1}, "producer"), with_gpu("A10G", 2)]
    # Eight like the longest share two GPUs; of two, each has one; one has no use for the second.
    waves = [[31.2e15] * 8, [31.2e15, 15.6e15], [15.6e15]]
    found = pace(on_gpus, nodes, waves, 121e15, slots=8, gpus_a_trial=0.25)
    assert found is not None
    assert found.trials_s == pytest.approx((4000 + 1000 + 500) / EFFICIENCY)
    assert found.model_s == pytest.approx(1000 / (2 * EFFICIENCY))
    assert found.seconds == found.trials_s
    assert found.gpu_hours == pytest.approx((2 + 8 * 0.25) * found.seconds / 3600)
    assert "cores" not in found.assumed


def test_on_cores_this_machines_are_measured() -> None:
    found = pace(sweep(trials={"cpus": 2}), None, [[1e12]], 1e12, slots=1, gpus_a_trial=0)
    assert found is not None and found.gpu_hours == 0
    assert 0 < found.trials_s < found.model_s < 3600
    assert "cores as fast as this machine's" in found.assumed


@pytest.mark.parametrize("nodes", [None, [PLAIN], [HEAD, PRODUCERS, with_gpu("A10G")]])
def test_without_the_gpus_names_nothing_is_guessed(nodes: Any) -> None:
    assert pace(sweep(trials={"gpus": 1}, producers={"gpus": 1}), nodes, [[1e15]], 1e15, 1, 1) is None
