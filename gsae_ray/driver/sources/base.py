"""What a launch needs to know of any source of activations: looked up first, then with its rows prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from gsae_ray.capacity.memory import Memory
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.data.prepare import Progress
from gsae_ray.data.probe_set import ProbeSets
from gsae_ray.language_model.source import SourceSpec
from gsae_ray.storage.references import Reference


@dataclasses.dataclass(frozen=True)
class PreparedSource:
    """A source whose rows can be produced: what producers are made from, and what identifies the rows."""

    spec: SourceSpec
    rows: tuple[int, ...]
    """Rows of each block; enough blocks for the longest trial."""
    seed: int
    """Of the data: rows are shuffled within a block by it."""
    provenance: Mapping[str, str]
    """All that decides the training rows, as hashes by name: a part of every trial's identity."""
    heldout: tuple[str, ...]
    """All that decides the held-out rows, as hashes: SAEs with the same are compared."""
    heldout_rows: int
    metadata: Mapping[str, Any]
    """`model` and `dataset`, as every SAE's `cfg.json` says them."""
    params: Mapping[str, Any]
    """Parameters of the launch's run in MLflow."""
    modules: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Site -> the same by module path, where transformers alone loads the model."""
    probes: ProbeSets | None = None
    """What SAEs are probed on; None where `evaluation.probes` asks for nothing."""


class Source(Protocol):
    """A source that has been looked up: what can be told of it before any row is prepared.

    Adding a kind of source is one class, chosen by `find_source`; `capacity.sources` has what it costs, for `plan`.
    """

    @property
    def sweep(self) -> Sweep:
        """The sweep as it is with this source: layers numbered, names pinned to what they stand for now."""

    @property
    def widths(self) -> Mapping[Site, int]:
        """Width of the activations at each used site."""

    @property
    def dtype(self) -> str:
        """Of the activations that trials receive."""

    def prepare(self, storage: Path, report: Progress) -> PreparedSource:
        """Makes its rows available to producers, unless they are already.

        Args:
            storage: where that is kept; shared by all sweeps of it.
            report: told of the progress.

        Raises:
            UserError: there are too few rows, or they cannot be had.
        """

    def producer_memory(self, block_bytes: int, trials: Iterable[TrialSpec], references: Iterable[Reference]) -> Memory:
        """Memory of a producer at its largest.

        Args:
            block_bytes: size of the largest block at all sites.
            trials: the trials that it may have to evaluate.
            references: SAEs from elsewhere that it may have to evaluate.
        """
