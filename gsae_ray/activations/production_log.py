"""What was produced for a launch. It outlives the store (the driver keeps it) and the driver (storage keeps it)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from gsae_ray.activations.layout import Layout
from gsae_ray.errors import DamagedError
from gsae_ray.files import JSONFile

EVALUATE = "evaluate"
"""`Evaluate.name`: evaluations of SAEs."""


@dataclasses.dataclass
class ProductionLog:
    """Completed productions, and what was held when it was written."""

    produced: dict[int, int] = dataclasses.field(default_factory=dict)
    """Block -> how many times it was produced, productions that a fault made necessary aside."""
    repeated: dict[int, int] = dataclasses.field(default_factory=dict)
    """Block -> how many times it was produced again because a fault had taken it."""
    held: list[int] = dataclasses.field(default_factory=list)
    """Blocks in the object store, or taken from it by a fault and not made again yet."""
    peak_bytes: int = 0
    """Most bytes of blocks, held and in production, at a time."""
    evaluations: int = 0
    """Evaluations of finished SAEs and of SAEs in training, with their own encoders and with pursuit."""
    told: list[str] = dataclasses.field(default_factory=list)
    """Lines that the user has been told, of what producers found: on attention sinks, say."""

    def add(self, block: int, again: bool) -> None:
        """Counts a complete production; `again`: of a block that a fault took."""
        times = self.repeated if again else self.produced
        times[block] = times.get(block, 0) + 1

    def add_task(self, name: str) -> None:
        """Counts a complete task of this name, if it is an evaluation."""
        if name == EVALUATE:
            self.evaluations += 1

    def copy(self) -> ProductionLog:
        return copy.deepcopy(self)


PRODUCTION_LOG = JSONFile(ProductionLog, "what was produced before is not counted", sealed=True)
"""A launch's `record.json`."""


def damage_of_log(path: Path) -> list[str]:
    """Returns a line where a launch's log is damaged, so that earlier productions are not counted any more."""
    try:
        PRODUCTION_LOG.read(path)
    except DamagedError as error:
        return [str(error)]
    return []


@dataclasses.dataclass(frozen=True)
class Counters:
    """A production log, counted in rows."""

    rows_produced: int
    """Rows of completed productions; those that a fault made necessary are counted apart."""
    rows_distinct: int
    """Rows of the blocks that were produced at least once."""
    rows_repeated: int
    """Rows of productions that a fault made necessary."""
    peak_bytes: int
    evaluations: int

    @classmethod
    def of(cls, record: ProductionLog, layout: Layout) -> Counters:
        def rows(times: Mapping[int, int]) -> int:
            return sum(layout.rows[block] * n for block, n in times.items())

        return cls(
            rows_produced=rows(record.produced),
            rows_distinct=rows(dict.fromkeys(record.produced.keys() | record.repeated.keys(), 1)),
            rows_repeated=rows(record.repeated),
            peak_bytes=record.peak_bytes,
            evaluations=record.evaluations,
        )

    @property
    def forward_ratio(self) -> float:
        """1.00: every row went through the language model once."""
        return self.rows_produced / self.rows_distinct if self.rows_distinct else float("nan")
