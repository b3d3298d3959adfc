"""Tasks of a producer as another package would define them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from gsae_ray.activations.producer import Producer
from gsae_ray.driver.prepare import PreparedSweep, producer_spec
from gsae_ray.errors import NumericError
from gsae_ray.language_model.source import ActivationSource

SITE = "blocks.1.hook_resid_post"


@dataclasses.dataclass(frozen=True)
class CountLongRows:
    """How many rows of a block are longer than `norm`, and how many tasks ran here before."""

    block: int
    norm: float

    name = "count"

    def run(self, source: ActivationSource, cache: dict[str, Any], say: Callable[[str], None]) -> dict[str, int]:
        before = cache.get("counted", 0)
        cache["counted"] = before + 1
        say(f"rows of block {self.block} are counted")
        norms = [batch.rows[SITE].norm(dim=1) for batch in source.block(self.block, [SITE])]
        return {"long": int((torch.cat(norms) > self.norm).sum()), "before": before}


@dataclasses.dataclass(frozen=True)
class Overflow:
    """A task that fails for good."""

    name = "overflow"

    def run(self, _source: ActivationSource, _cache: dict[str, Any], _say: Callable[[str], None]) -> None:
        raise NumericError("too large")


def long_rows(plan: PreparedSweep, norm: float) -> int:
    """As the task, from the chunks."""
    _, chunks = Producer(producer_spec(plan)).produce(0, [SITE])
    return sum(int((torch.from_numpy(chunk).norm(dim=1) > norm).sum()) for chunk in chunks)
