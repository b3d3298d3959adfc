"""Nodes of clusters, and small sweeps to fit into them."""

from __future__ import annotations

from typing import Any

from gsae_ray.capacity.nodes import PRODUCER, TRAINER, Node
from gsae_ray.config.sweep import Sweep

HEAD = Node({"CPU": 0, "object_store_memory": 10 * 2**30})
PRODUCERS = Node({"CPU": 8, "GPU": 1, "object_store_memory": 20 * 2**30}, PRODUCER)
TRAINERS = Node({"CPU": 16, "GPU": 1, "object_store_memory": 30 * 2**30}, TRAINER)
STANDARD = {"architecture": "standard", "l1_coefficient": [1]}
PLAIN = Node({"CPU": 16, "GPU": 2})
LATER = Node({"CPU": 32, "GPU": 4, "object_store_memory": 99 * 2**30}, to_come=True)


def sweep(**sections: Any) -> Sweep:
    return Sweep.model_validate(
        {
            "name": "fit",
            "model": {"name": "builtin"},
            "dataset": {"name": "builtin"},
            "sites": {"layers": [1], "points": ["resid_post"]},
            "saes": [{"architecture": "standard", "widths": [8], "l1_coefficient": [1]}],
            "training": {"tokens": 1000, "batch_size": 10},
            **sections,
        }
    )


def with_gpu(name: str, count: int = 1, **more: float) -> Node:
    return Node({"CPU": 16, "GPU": count, f"accelerator_type:{name}": 1, **more}, TRAINER)
