"""What is kept of where features fire, in arrays of a fixed size: counts, a histogram, the largest, and a sample.

A row goes by its number among all positions of the held-out contexts: context × T + position. Nothing depends on how
many rows are added at a time, nor on their order but for the last bits of a sum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

OCTAVES, BINS_AN_OCTAVE = 12, 4
EDGES: NDArray[np.float64] = 2.0 ** (
    np.arange(-OCTAVES * BINS_AN_OCTAVE, OCTAVES * BINS_AN_OCTAVE + 1) / BINS_AN_OCTAVE
)
"""Of the histograms: 2^-12 to 2^12, in steps of 2^¼. The first and the last bin have what lies beyond, too."""
POSITION_BINS = 16
"""Of positions in a context, of equal width as far as they can be."""
SAMPLE = 64
"""Firing rows that are kept of each feature, drawn without replacement."""
FEATURES_AT_ONCE = 8192
"""Features whose kept rows are merged with new ones at a time."""
FIRINGS_BYTES = 12 * SAMPLE + 4 * (len(EDGES) - 1) + 4 * POSITION_BINS + 28
"""Bytes a feature takes here, without the rows with its largest activations: 12 bytes each."""

_NONE = np.uint64(2**64 - 1)
"""The key of a place that holds nothing."""
_ROW_BITS, _ROW = np.uint64(32), np.uint64(2**32 - 1)
UInts = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def position_edges(positions: int) -> list[int]:
    """Where the bins of positions begin, in a context of so many, and where the last one ends."""
    return [-(-part * positions // POSITION_BINS) for part in range(POSITION_BINS + 1)]


class Smallest:
    """Of each feature the entries with the smallest keys. A key's upper half orders entries, its lower half is a row.

    Keys of a feature are all different, so that what is kept follows from what was added alone.
    """

    def __init__(self, features: int, size: int, positions: int | None = None) -> None:
        """Begins with nothing.

        Args:
            features: how many.
            size: entries of each that are kept.
            positions: of a context; where it is given, at most one entry of each context is kept.
        """
        self.keys_FK = np.full((features, size), _NONE)
        self.values_FK = np.zeros((features, size), np.float32)
        self.positions = positions

    @property
    def rows_FK(self) -> Ints:
        """The row of each entry, the smallest key first; −1: there is none."""
        return np.where(self.keys_FK == _NONE, -1, (self.keys_FK & _ROW).astype(np.int64))

    def add(self, feature_N: Ints, key_N: UInts, value_N: Floats) -> None:
        """Adds entries."""
        taken_N = key_N < self.keys_FK[feature_N, -1]
        if not taken_N.any():
            return
        feature_N, key_N, value_N = feature_N[taken_N], key_N[taken_N], value_N[taken_N]
        order = np.lexsort((key_N, feature_N))
        feature_N, key_N, value_N = feature_N[order], key_N[order], value_N[order]
        different_U, first_U = np.unique(feature_N, return_index=True)
        ends = np.append(first_U, len(feature_N))
        for start in range(0, len(different_U), FEATURES_AT_ONCE):
            stop = min(start + FEATURES_AT_ONCE, len(different_U))
            part = slice(ends[start], ends[stop])
            of_N = feature_N[part]
            place_N = np.arange(ends[start], ends[stop]) - ends[np.searchsorted(different_U, of_N)]
            self._merge(different_U[start:stop], of_N, place_N, key_N[part], value_N[part])

    def _merge(self, feature_M: Ints, feature_N: Ints, place_N: Ints, key_N: UInts, value_N: Floats) -> None:
        """Adds entries of some features, each at its place among those of its feature."""
        kept = self.keys_FK.shape[1]
        if self.positions is None and place_N.max() >= kept:  # of these no more can stay
            few = place_N < kept
            feature_N, place_N, key_N, value_N = feature_N[few], place_N[few], key_N[few], value_N[few]
        width = kept + int(place_N.max()) + 1
        keys_MW, values_MW = np.full((len(feature_M), width), _NONE), np.zeros((len(feature_M), width), np.float32)
        keys_MW[:, :kept], values_MW[:, :kept] = self.keys_FK[feature_M], self.values_FK[feature_M]
        where = np.searchsorted(feature_M, feature_N), kept + place_N
        keys_MW[where], values_MW[where] = key_N, value_N
        keys_MW, values_MW = _sorted(keys_MW, values_MW)
        if self.positions is not None:
            keys_MW[_repeated((keys_MW & _ROW) // np.uint64(self.positions), keys_MW)] = _NONE
            keys_MW, values_MW = _sorted(keys_MW, values_MW)
        self.keys_FK[feature_M], self.values_FK[feature_M] = keys_MW[:, :kept], values_MW[:, :kept]


def _sorted(keys_MW: UInts, values_MW: Floats) -> tuple[UInts, Floats]:
    order = keys_MW.argsort(axis=1, kind="stable")
    return np.take_along_axis(keys_MW, order, 1), np.take_along_axis(values_MW, order, 1)


def _repeated(context_MW: UInts, keys_MW: UInts) -> NDArray[np.bool_]:
    """Which entries are of a context that an entry before them in their line is of."""
    order = context_MW.argsort(axis=1, kind="stable")
    sorted_MW = np.take_along_axis(context_MW, order, 1)
    same_MW = np.zeros(context_MW.shape, bool)
    same_MW[:, 1:] = sorted_MW[:, 1:] == sorted_MW[:, :-1]
    found_MW = np.empty_like(same_MW)
    np.put_along_axis(found_MW, order, same_MW, 1)
    return found_MW & (keys_MW != _NONE)


class Firings:
    """Where the features of an SAE fire."""

    def __init__(self, features: int, top: int, positions: int, seed: int) -> None:
        """Begins with nothing.

        Args:
            features: how many.
            top: how many of the largest activations of each are kept, each of another context.
            positions: of a context.
            seed: of the sample.
        """
        self.seed = seed
        self.fired_F = np.zeros(features, np.int64)
        self.sum_F = np.zeros(features, np.float64)
        self.max_F = np.zeros(features, np.float32)
        self.histogram_FH = np.zeros((features, len(EDGES) - 1), np.int32)
        self.positions_FP = np.zeros((features, POSITION_BINS), np.int32)
        self.positions = positions
        self.top = Smallest(features, top, positions)
        self.sample = Smallest(features, SAMPLE)

    def add(self, feature_N: Ints, value_N: Floats, row_N: Ints) -> None:
        """Adds activations above 0 of whole rows, row by row."""
        # `at` adds one after the other, so that a sum does not depend on how many are added at a time.
        np.add.at(self.fired_F, feature_N, 1)
        np.add.at(self.sum_F, feature_N, value_N)
        np.maximum.at(self.max_F, feature_N, value_N)
        bin_N = np.searchsorted(EDGES[1:-1], value_N, side="right")
        np.add.at(self.histogram_FH, (feature_N, bin_N), 1)
        np.add.at(self.positions_FP, (feature_N, row_N % self.positions * POSITION_BINS // self.positions), 1)
        rows = row_N.astype(np.uint64)
        order_N = np.uint32(2**32 - 1) - np.ascontiguousarray(value_N).view(np.uint32)  # bits order numbers above 0
        self.top.add(feature_N, (order_N.astype(np.uint64) << _ROW_BITS) | rows, value_N)
        self.sample.add(feature_N, (_drawn(feature_N, rows, self.seed) << _ROW_BITS) | rows, value_N)


def _drawn(feature_N: Ints, row_N: UInts, seed: int) -> UInts:
    """Numbers of 32 bits of (feature, row, seed) that look random: SplitMix64's finaliser (Steele et al. 2014)."""
    x = feature_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + row_N * np.uint64(0xD1B54A32D192ED03)
    x += np.uint64((seed * 0x8CB92BA72F3D8DD7 + 0x9E3779B97F4A7C15) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(32)


class Shown:
    """Which rows are shown of each feature."""

    def __init__(self, firings: Firings, top: int, quantile: int, positions: int) -> None:
        """Chooses them.

        Args:
            firings: where features fire.
            top: how many of the largest activations, each of another context.
            quantile: how many at evenly spaced quantiles of the sample: none that is among those, and of contexts of
                their own where there are enough.
            positions: of a context.
        """
        self.top_FK = firings.top.rows_FK[:, :top]
        self.quantile_FQ = np.full((len(self.top_FK), quantile), -1)
        self.share_FQ = np.zeros((len(self.top_FK), quantile), np.float32)
        """Of the sample, whose activation is smaller."""
        for start in range(0, len(self.top_FK), FEATURES_AT_ONCE):
            part = slice(start, start + FEATURES_AT_ONCE)
            rows_MS, values_MS = firings.sample.rows_FK[part], firings.sample.values_FK[part]
            found = _at_quantiles(rows_MS, values_MS, self.top_FK[part], quantile, positions)
            self.quantile_FQ[part], self.share_FQ[part] = found


def _at_quantiles(
    rows_MS: Ints, values_MS: Floats, top_MK: Ints, quantiles: int, positions: int
) -> tuple[Ints, NDArray[np.float32]]:
    """Rows at evenly spaced quantiles of samples, the largest activation first, and the share of smaller ones."""
    order = np.lexsort((rows_MS, np.where(rows_MS < 0, np.inf, values_MS)), axis=1)
    rows_MS, values_MS = np.take_along_axis(rows_MS, order, 1), np.take_along_axis(values_MS, order, 1)
    there_MS = rows_MS >= 0
    size_M1 = np.maximum(there_MS.sum(1, keepdims=True), 1)
    place_MS = np.broadcast_to(np.arange(rows_MS.shape[1]), rows_MS.shape)
    free_MS = there_MS & ~(rows_MS[:, :, None] == top_MK[:, None]).any(2)
    context_MS, lines = rows_MS // positions, np.arange(len(rows_MS))
    again_MS = (context_MS[:, :, None] == (top_MK // positions)[:, None]).any(2)  # of a context that is shown
    chosen_MQ = np.full((len(rows_MS), quantiles), -1)
    for index in range(quantiles):
        wanted_M1 = size_M1 * (quantiles - index - 0.5) / quantiles - 0.5
        cost_MS = np.abs(place_MS - wanted_M1) + np.where(again_MS, 2.0 * SAMPLE, 0) + np.where(free_MS, 0, np.inf)
        best_M = cost_MS.argmin(1)
        found_M = free_MS[lines, best_M]
        chosen_MQ[found_M, index] = best_M[found_M]
        free_MS[lines[found_M], best_M[found_M]] = False
        again_MS |= found_M[:, None] & (context_MS == context_MS[lines, best_M][:, None])
    chosen_MQ = -np.sort(-chosen_MQ, axis=1)  # by activation again: those of other contexts may lie elsewhere
    is_one, at = chosen_MQ >= 0, np.maximum(chosen_MQ, 0)
    values_MQ = np.take_along_axis(values_MS, at, 1)
    smaller_MQ = ((values_MS[:, None] < values_MQ[:, :, None]) & there_MS[:, None]).sum(2)
    rows_MQ = np.where(is_one, np.take_along_axis(rows_MS, at, 1), -1)
    return rows_MQ, np.where(is_one, smaller_MQ / size_M1, 0).astype(np.float32)
