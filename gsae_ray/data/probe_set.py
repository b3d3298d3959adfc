"""Labelled tokens, or labelled documents, on which sparse probes are fitted and scored. numpy only."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsae_ray.files import digest

KEPT_BYTES = 2**30
"""A producer keeps rows of probe sets up to this size, and always those of the site that is probed."""
NO_PART = -1
"""Stands for a label of what a task leaves out."""


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeSet:
    """Documents, as contexts of a language model, with a label, 0 or 1, of each of their rows for each task.

    What is labelled is a token or, of a `pooled` set, a document as a whole, whose activations are the mean over its
    rows; each is then one context.
    """

    name: str
    tokens_CT: NDArray[np.int32]
    """Token ids, and PADDING."""
    kept_CT: NDArray[np.bool_]
    """Which positions are rows."""
    document_C: NDArray[np.int32]
    """The document, from 0, that each context is of."""
    fitted_M: NDArray[np.bool_]
    """Whether probes are fitted on a document; on the others they are scored."""
    tasks: tuple[str, ...]
    labels: NDArray[np.int8]
    """[tasks, C, T], or of a pooled set [tasks, C]; NO_PART where a task leaves something out, as where no row is."""
    pooled: bool

    @property
    def rows(self) -> int:
        return int(self.kept_CT.sum())

    def described(self) -> list[Any]:
        """All that decides the numbers of probes, for a hash of it."""
        arrays = (self.tokens_CT, self.kept_CT, self.document_C, self.fitted_M, self.labels)
        return [self.name, self.tasks, self.pooled, [digest([a.shape, a.tobytes().hex()]) for a in arrays]]


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeSets:
    """All that a sweep's SAEs are probed on."""

    sets: tuple[ProbeSet, ...]
    fingerprint: str
    """Hash of all that decides the numbers, besides the language model and the SAE."""

    @classmethod
    def of(cls, sets: tuple[ProbeSet, ...], version: int) -> ProbeSets:
        """The sets with their fingerprint; `version` is that of how probes are fitted and scored."""
        return cls(sets, digest([version, *(one.described() for one in sets)]))
