"""Which features two SAEs share: of each feature the nearest one of the other SAE, by the cosine of decoder rows.

The mean of these largest cosines is the mean maximal cosine similarity (MMCS; Sharkey, Braun & Millidge 2022, "Taking
features out of superposition with sparse autoencoders").
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gsae_ray.evaluation.bootstrap import DRAWS, SEED, ends_of
from gsae_ray.evaluation.feature_directions import BLOCK_NUMBERS


class Matches(NamedTuple):
    """Of each feature of an SAE the nearest one of another."""

    feature: npt.NDArray[np.int64]
    """[features]; -1 where there is none, since either feature never fires."""
    cosine: npt.NDArray[np.float32]
    """[features]; 0 where there is none."""


class Survival(NamedTuple):
    """How much of an SAE's features another SAE has."""

    mean: float
    """Of the largest cosines."""
    low: float
    high: float
    """The ends of its 95 % interval: features drawn with replacement."""


def matches(
    a_FD: Tensor, b_GD: Tensor, alive_F: npt.NDArray[np.bool_], alive_G: npt.NDArray[np.bool_]
) -> tuple[Matches, Matches]:
    """The nearest features of two SAEs, of the first in the second and of the second in the first.

    Blocks of rows at a time, each once for both: never a number for each pair of features.

    Args:
        a_FD: decoder rows of the first.
        b_GD: of the second, of the same site.
        alive_F: which features of the first fire; the others have no matches, and are none: nothing has trained them.
        alive_G: which of the second do.
    """
    places = np.flatnonzero(alive_F), np.flatnonzero(alive_G)
    first, second = (
        torch.nn.functional.normalize(rows[torch.from_numpy(place)].float(), dim=1)
        for rows, place in zip((a_FD, b_GD), places, strict=True)
    )
    found = [Matches(np.full(len(rows), -1), np.zeros(len(rows), np.float32)) for rows in (a_FD, b_GD)]
    if not len(first) or not len(second):
        return found[0], found[1]
    best_G, at_G = torch.full((len(second),), -torch.inf), torch.zeros(len(second), dtype=torch.long)
    size = max(1, BLOCK_NUMBERS // len(second))
    for start in range(0, len(first), size):
        cosine_BG = first[start : start + size] @ second.T
        cosine_B, index_B = cosine_BG.max(1)
        _enter(found[0], places[0][start : start + size], places[1][index_B], cosine_B)
        cosine_G, index_G = cosine_BG.max(0)
        at_G = torch.where(cosine_G > best_G, index_G + start, at_G)
        best_G = torch.maximum(best_G, cosine_G)
    _enter(found[1], places[1], places[0][at_G], best_G)
    return found[0], found[1]


def _enter(found: Matches, features: npt.NDArray[np.int64], others: npt.NDArray[np.int64], cosines: Tensor) -> None:
    found.feature[features] = others
    found.cosine[features] = cosines.clamp(-1, 1).numpy()


def survival(found: Matches) -> Survival | None:
    """How much of an SAE's features another has: over those that have a match; None where none has."""
    cosines = found.cosine[found.feature >= 0].astype(np.float64)
    if not len(cosines):
        return None
    random = np.random.RandomState(SEED)
    means = np.array([cosines[random.randint(len(cosines), size=len(cosines))].mean() for _ in range(DRAWS)])
    return Survival(float(cosines.mean()), *ends_of(means))
