"""The true features of synthetic activations: their directions, how often they are active, and their parents.

Axis G counts true features, D coordinates. First come the features without a parent, the most frequent one first, then
their children level by level, those of one parent side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gsae_ray.config.synthetic import SyntheticSettings
from gsae_ray.errors import UserError

Array = NDArray[np.float64]
DIRECTIONS = 0
"""What the seed of a random stream begins with, that of the directions; see `rows` for the others."""
SEARCH_STEPS = 300
MARGIN = 0.99
"""Cosines are pushed below so much of what they may be, so that the search ends."""


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """What is known of the true features."""

    directions_GD: NDArray[np.float32]
    """Unit vectors."""
    frequency_G: Array
    """Probability that a feature is active on a row."""
    parent_G: NDArray[np.int64]
    """The feature without which one is never active; −1: none."""


def dictionary(settings: SyntheticSettings) -> Dictionary:
    """The true features that a sweep file describes.

    Raises:
        UserError: the directions cannot be as far from each other as asked for.
    """
    parent_G = parents(settings)
    return Dictionary(directions(settings), frequencies(settings, parent_G), parent_G)


def levels(settings: SyntheticSettings) -> Iterator[tuple[slice, slice]]:
    """(parents, children) of each level of the hierarchy, from the roots down."""
    tree = settings.hierarchy
    if tree is None:
        return
    above, end = slice(0, tree.roots), settings.without_parent
    for _ in range(tree.depth):
        below = slice(end, end + (above.stop - above.start) * tree.branching)
        yield above, below
        above, end = below, below.stop


def parents(settings: SyntheticSettings) -> NDArray[np.int64]:
    """The parent of each feature, −1 where it has none."""
    parent_G = np.full(settings.features, -1, dtype=np.int64)
    for above, below in levels(settings):
        assert settings.hierarchy is not None
        parent_G[below] = np.repeat(np.arange(above.start, above.stop), settings.hierarchy.branching)
    return parent_G


def frequencies(settings: SyntheticSettings, parent_G: NDArray[np.int64]) -> Array:
    """How often each feature is active; they sum to `active`. A child is `hierarchy.frequency` times its parent's."""
    p_G = np.zeros(settings.features)
    p_G[: settings.without_parent] = settings.frequencies()
    for _, below in levels(settings):
        assert settings.hierarchy is not None
        p_G[below] = p_G[parent_G[below]] * settings.hierarchy.frequency
    return p_G


def directions(settings: SyntheticSettings) -> NDArray[np.float32]:
    """Random unit vectors [G, D]; with `coherence` moved apart until no two are nearer to each other than that.

    Raises:
        UserError: the search did not come to that.
    """
    # RandomState's streams are frozen by numpy's compatibility policy; Generator's are not.
    random = np.random.RandomState([DIRECTIONS, settings.seed])
    d_GD = _unit(random.standard_normal((settings.features, settings.d_in)))
    most = settings.coherence
    if most is None or _largest_cosine(d_GD) <= most:
        return d_GD.astype(np.float32)
    if settings.features <= settings.d_in:  # they can be orthogonal, which the search only comes near to
        q_DG, _ = np.linalg.qr(d_GD.T)
        return np.ascontiguousarray(q_DG.T, dtype=np.float32)
    return _apart(d_GD, most, settings.welch).astype(np.float32)


def _largest_cosine(d_GD: Array) -> float:
    """Of two directions, either way."""
    return float(np.abs(_cosines(d_GD)).max())


def _cosines(d_GD: Array) -> Array:
    """Of all pairs of directions; 0 of one with itself."""
    cosine_GG: Array = d_GD @ d_GD.T
    np.fill_diagonal(cosine_GG, 0)
    return cosine_GG


def _apart(d_GD: Array, most: float, welch: float) -> Array:
    """Moves directions apart until all |cosines| are at most `most`: descent on Σ max(|cosine| − most, 0)²."""
    n_features, width = d_GD.shape
    rate, velocity_GD, best = 0.5 / (1 + n_features / width), np.zeros_like(d_GD), 1.0
    for _ in range(SEARCH_STEPS):
        cosine_GG = _cosines(d_GD)
        over_GG = np.abs(cosine_GG)
        best = min(best, largest := float(over_GG.max()))
        if largest <= most:
            return d_GD
        over_GG = np.sign(cosine_GG) * np.maximum(over_GG - MARGIN * most, 0)
        velocity_GD = 0.9 * velocity_GD - rate * (over_GG @ d_GD)
        d_GD = _unit(d_GD + velocity_GD)
    raise UserError(
        f"model.coherence: {most:g} was not reached: with {n_features:,} directions in {width} dimensions the search "
        f"came to {best:.3g} (Welch's bound is {welch:.3g}); raise it, or leave it out"
    )


def _unit(d_GD: Array) -> Array:
    return d_GD / np.linalg.norm(d_GD, axis=1, keepdims=True)
