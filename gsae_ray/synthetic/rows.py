"""Rows of synthetic activations, drawn from a dictionary of known features.

A row is a sum of directions and noise:

    x = Σ_i z_i a_i d_i + ε

    d_i    unit vectors                                   `directions` of the dictionary
    z_i    0 or 1, with E z_i = p_i                       `frequencies` of the dictionary; Σ p_i = `active`
    a_i    coefficients > 0 with mean 1                   `magnitudes`; independent of all else
    ε      Gaussian, E‖ε‖² = `noise`²                     independent of all else

Without correlation and hierarchy the z_i are independent. With correlation a feature i without a parent has a group
g(i) = i mod `groups`, which is on with probability q = `frequency`, and with s = `strength`

    P(z_i = 1 | g(i) is on) = p_i (1 − s + s / q)         P(z_i = 1 | it is not) = p_i (1 − s)

independently beyond that. So p_i is as without groups, and two features of a group are active together
1 + s² (1 − q) / q times as often as independent ones. In a hierarchy a child c of p has

    P(z_c = 1 | z_p = 1) = `hierarchy.frequency`          P(z_c = 1 | z_p = 0) = 0

independently of its siblings, or with `exclusive` such that at most one of them is active.

The rows of a block are a function of the settings, the data's seed and the block's number: nothing else is drawn from
its random stream. Held-out rows have a stream of their own, which does not depend on the data's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gsae_ray.config.synthetic import SyntheticSettings
from gsae_ray.synthetic.dictionary import Dictionary, dictionary, levels

TRAINING, HELD_OUT = 1, 2
"""What the seed of a random stream begins with."""
REVISION = 1
"""Raised when the same settings come to other rows; it is a part of what identifies them."""
_BATCH_NUMBERS = 2**20
"""Random numbers drawn at a time, about. Where batches end decides which number is whose, so this is not to change."""
_SCALE = 2**32
"""Of random integers, which are compared with probabilities: as fine as these are, and drawn in two thirds of the time
of floats."""


class Rows(NamedTuple):
    """Some consecutive rows."""

    x_RD: Tensor
    """float32, on the CPU."""
    active_RG: Tensor
    """Which true features are active."""


class RowGenerator:
    """Draws rows; see the module."""

    def __init__(self, settings: SyntheticSettings) -> None:
        """Makes the dictionary.

        Raises:
            UserError: as `dictionary`.
        """
        self.settings = settings
        self.features: Dictionary = dictionary(settings)
        self.batch_rows = batch_rows(settings)
        group, p_N = settings.correlation, self.features.frequency_G[: settings.without_parent]
        self._below_N = _thresholds(p_N * (1 - group.strength) if group else p_N)
        self._below_in_group_N = _thresholds(np.minimum(p_N * group.boost, 1)) if group else None
        self._directions_GD = torch.from_numpy(self.features.directions_GD)

    def block(self, seed: int, block: int, rows: int) -> Iterator[Rows]:
        """The rows of a block of the stream.

        Args:
            seed: of the data.
            block: its number.
            rows: how many of them it has.
        """
        return self._draw(np.random.RandomState([TRAINING, self.settings.seed, seed, block]), rows)

    def heldout(self, rows: int) -> Iterator[Rows]:
        """Rows that are in no block."""
        return self._draw(np.random.RandomState([HELD_OUT, self.settings.seed]), rows)

    def _draw(self, random: np.random.RandomState, rows: int) -> Iterator[Rows]:
        for start in range(0, rows, self.batch_rows):
            yield self._batch(random, min(self.batch_rows, rows - start))

    def _batch(self, random: np.random.RandomState, rows: int) -> Rows:
        settings = self.settings
        active_RG = self._active(random, rows)
        row_N, feature_N = np.divmod(np.flatnonzero(active_RG), settings.features)
        coefficient_N = _MAGNITUDES[settings.magnitudes](random, len(row_N)).astype(np.float32)
        # Sums of a few directions each: less work than a product with all, and the same bits whatever the threads.
        x_RD = F.embedding_bag(
            torch.from_numpy(feature_N),
            self._directions_GD,
            torch.from_numpy(np.searchsorted(row_N, np.arange(rows))),
            per_sample_weights=torch.from_numpy(coefficient_N),
            mode="sum",
        )
        if settings.noise:
            noise_RD = random.standard_normal((rows, settings.d_in)) * (settings.noise / settings.d_in**0.5)
            x_RD += torch.from_numpy(noise_RD.astype(np.float32))
        return Rows(x_RD, torch.from_numpy(active_RG))

    def _active(self, random: np.random.RandomState, rows: int) -> NDArray[np.bool_]:
        """Which features are active on each row [R, G]."""
        settings, first = self.settings, self.settings.without_parent
        drawn_RG = random.randint(0, _SCALE, size=(rows, settings.features), dtype=np.uint32)
        active_RG = np.zeros(drawn_RG.shape, dtype=np.bool_)
        active_RG[:, :first] = drawn_RG[:, :first] < self._below_N
        if (group := settings.correlation) is not None and self._below_in_group_N is not None:
            on_RK = random.random_sample((rows, group.groups)) < group.frequency
            active_RG[:, :first] |= on_RK[:, np.arange(first) % group.groups] & (
                drawn_RG[:, :first] < self._below_in_group_N
            )
        for above, below in levels(settings):
            tree = settings.hierarchy
            assert tree is not None
            shape = rows, above.stop - above.start, tree.branching
            drawn_RPC = drawn_RG[:, below].reshape(shape)
            if tree.exclusive:  # the children share a number, of which each has an interval
                bounds = _thresholds(np.arange(tree.branching + 1, dtype=np.float64) * tree.frequency)
                chosen_RPC = (bounds[:-1] <= drawn_RPC[:, :, :1]) & (drawn_RPC[:, :, :1] < bounds[1:])
            else:
                chosen_RPC = drawn_RPC < _thresholds(np.array([tree.frequency]))
            active_RG[:, below] = (active_RG[:, above, None] & chosen_RPC).reshape(rows, -1)
        return active_RG


def batch_rows(settings: SyntheticSettings) -> int:
    """Rows that are drawn at a time."""
    return max(1, _BATCH_NUMBERS // max(settings.features, settings.d_in))


def _thresholds(probabilities: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Integers below which a random one of 32 bits is with these probabilities."""
    return np.minimum(np.round(probabilities * _SCALE), _SCALE - 1).astype(np.uint32)


_MAGNITUDES: dict[str, Callable[[np.random.RandomState, int], NDArray[np.float64]]] = {
    "constant": lambda _, count: np.ones(count),
    "uniform": lambda random, count: random.uniform(0.5, 1.5, count),
    "lognormal": lambda random, count: random.lognormal(-(0.5**2) / 2, 0.5, count),
    "exponential": lambda random, count: random.standard_exponential(count),
}
"""Coefficients of so many active features, with mean 1."""
