"""Synthetic activations as the source of a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from gsae_ray.capacity.memory import Memory
from gsae_ray.capacity.synthetic import SyntheticCost
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.data.prepare import Progress
from gsae_ray.driver.sources.base import PreparedSource
from gsae_ray.files import digest
from gsae_ray.storage.references import Reference
from gsae_ray.synthetic.rows import REVISION
from gsae_ray.synthetic.source import SyntheticSpec


class Synthetic:
    """See `Source`. There is nothing to look up, and nothing to keep: rows are drawn whenever they are asked for."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None]) -> None:
        """Makes the dictionary, to find out whether it can be had.

        Raises:
            UserError: it cannot.
        """
        self.sweep = sweep
        self._cost = SyntheticCost(sweep)
        for line in self._cost.notices():
            say(line)
        self.widths, self.dtype = self._cost.widths, self._cost.dtype

    def prepare(self, storage: Path, report: Progress) -> PreparedSource:  # noqa: ARG002
        """There is nothing to make: rows are drawn by producers."""
        sweep, model = self.sweep, self.sweep.synthetic
        longest = sweep.longest_tokens
        rows = (sweep.rows_a_block,) * -(-longest // sweep.rows_a_block)
        heldout_rows, dataset = sweep.evaluation.tokens, sweep.drawn_rows
        described = json.loads(model.model_dump_json())
        fingerprint = digest([described, REVISION])
        return PreparedSource(
            spec=SyntheticSpec(model, rows, heldout_rows, dataset.seed, dataset.max_norm),
            rows=rows,
            seed=dataset.seed,
            provenance={"model": fingerprint, "rows": digest([dataset.seed, sweep.rows_a_block])},
            heldout=(fingerprint, digest(heldout_rows)),
            heldout_rows=heldout_rows,
            metadata={"model": described, "dataset": dataset.model_dump()},
            params={
                "model": model.name,
                **{f"model.{key}": value for key, value in described.items() if key != "name"},
                "dataset.seed": dataset.seed,
                "dtype": self.dtype,
            },
        )

    def producer_memory(self, block_bytes: int, trials: Iterable[TrialSpec], references: Iterable[Reference]) -> Memory:
        """That of a block, and of an evaluation."""
        return self._cost.producer_memory(block_bytes, list(trials), list(references))
