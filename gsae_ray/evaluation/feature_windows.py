"""The pieces of text that are shown of each feature, filled with its activations; and what fires beside it there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsae_ray.evaluation.feature_firings import Ints, Shown

COACTIVE = 10
"""Features that are kept of each."""
BESIDE = 64
"""Of a row, so many features count as on: those with the largest activations."""
FEATURES_AT_ONCE = 2048
"""Features whose coactive ones are counted at a time."""
WINDOW_BYTES = 4 + 8 + 8 + 4 + 4
"""Bytes of a window without its activations."""
DRAWN, OFF = 16, 10
"""Windows that are drawn for each feature to be looked at for one in which it is off, and that are kept at most."""
OFF_BYTES = DRAWN * (4 + 4 + 1 + 4 + 8 + 8 + 1)
"""Bytes of them a feature."""


class Windows:
    """Windows of some tokens of contexts, each of a feature.

    They are in the order of the tables: by feature, top ones first, the largest activation first.
    """

    def __init__(self, shown: Shown, tokens_ET: NDArray[np.int32], lengths_E: Ints, window: int) -> None:
        """Lays them round the rows that are shown, which are in their middle where the context allows.

        Args:
            shown: which rows.
            tokens_ET: token ids.
            lengths_E: tokens of each context, without padding.
            window: tokens of each.
        """
        positions = tokens_ET.shape[1]
        rows_FW = np.concatenate([shown.top_FK, shown.quantile_FQ], axis=1)
        there_FW = rows_FW >= 0
        feature_W, place_W = np.nonzero(there_FW)
        self.feature_W, self.place_W = feature_W.astype(np.int32), place_W.astype(np.int16)
        self.row_W: Ints = rows_FW[there_FW]
        context_W, position_W = self.row_W // positions, self.row_W % positions
        self.length_W = np.minimum(window, lengths_E[context_W]).astype(np.int32)
        start_W = np.clip(position_W - window // 2, 0, lengths_E[context_W] - self.length_W)
        self.first_W: Ints = context_W * positions + start_W
        """The row of each window's first token."""
        self.activations_WT = np.zeros((len(self.row_W), window), np.float32)
        self._order_W = np.argsort(self.first_W, kind="stable")
        self._sorted_W, self._lengths_W = self.first_W[self._order_W], self.length_W[self._order_W]

    def fill(self, acts_RF: Tensor, row_R: Ints) -> None:
        """Fills in activations of rows, whose numbers rise."""
        window = self.activations_WT.shape[1]
        for r, n, offset in _inside(self._sorted_W, self._lengths_W, window, row_R):
            windows = self._order_W[n]
            self.activations_WT[windows, offset] = _values(acts_RF, r, self.feature_W[windows])

    def needs(self, first: int, last: int) -> bool:
        """Whether some window reaches into rows of these numbers, both ends included."""
        begin = np.searchsorted(self._sorted_W, first - self.activations_WT.shape[1], side="right")
        return bool(begin < np.searchsorted(self._sorted_W, last, side="right"))


class Elsewhere:
    """Windows of other features, drawn for each feature, and whether it is off throughout each of them."""

    def __init__(self, windows: Windows, features: int, seed: int) -> None:
        """Draws them, whatever the features do there.

        Args:
            windows: of the same SAE.
            features: how many it has.
            seed: the same draws the same.
        """
        self._window = windows.activations_WT.shape[1]
        drawn = DRAWN * features if len(windows.first_W) else 0
        window_N = np.random.default_rng(seed).integers(max(len(windows.first_W), 1), size=drawn).astype(np.int32)
        order_N = np.argsort(windows.first_W[window_N], kind="stable")
        self.window_N = window_N[order_N]
        self.feature_N, self.draw_N = (order_N // DRAWN).astype(np.int32), (order_N % DRAWN).astype(np.int8)
        self._sorted_N, self._lengths_N = windows.first_W[self.window_N], windows.length_W[self.window_N]
        self.on_N = np.zeros(drawn, bool)

    def look(self, acts_RF: Tensor, row_R: Ints) -> None:
        """Looks at rows, whose numbers rise."""
        for r, n, _ in _inside(self._sorted_N, self._lengths_N, self._window, row_R):
            self.on_N[n[_values(acts_RF, r, self.feature_N[n]) > 0]] = True

    def off(self) -> tuple[Ints, NDArray[np.int32]]:
        """Features, rising, and for each a window in which it is off: the first `OFF` of each, none twice."""
        off_P = np.flatnonzero(~self.on_N)
        off_P = off_P[np.lexsort((self.draw_N[off_P], self.feature_N[off_P]))]
        feature_P, window_P = self.feature_N[off_P].astype(np.int64), self.window_N[off_P]
        _, new = np.unique(feature_P << 32 | window_P, return_index=True)
        feature_P, window_P = feature_P[np.sort(new)], window_P[np.sort(new)]
        few_P = np.arange(len(feature_P)) - np.searchsorted(feature_P, feature_P) < OFF
        return feature_P[few_P], window_P[few_P]


def _inside(sorted_N: Ints, length_N: NDArray[np.int32], window: int, row_R: Ints) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Which rows lie in which windows: places of rows, numbers of windows, and places of the rows in these.

    Args:
        sorted_N: the row of each window's first token, rising.
        length_N: tokens of each.
        window: the most tokens.
        row_R: numbers of rows, rising.
    """
    begin = np.searchsorted(sorted_N, row_R[0] - window, side="right")
    end = np.searchsorted(sorted_N, row_R[-1], side="right")
    at_once = max(1, 2**22 // len(row_R))
    for start in range(int(begin), int(end), at_once):
        some = slice(start, min(start + at_once, int(end)))
        offset_RN = row_R[:, None] - sorted_N[some]
        r, n = np.nonzero((offset_RN >= 0) & (offset_RN < length_N[some]))
        if len(r):
            yield r, n + start, offset_RN[r, n]


def _values(acts_RF: Tensor, row_N: Ints, feature_N: NDArray[np.int32]) -> NDArray[np.float32]:
    """The activation of each feature on each row."""
    rows, features = (torch.from_numpy(n.astype(np.int64)).to(acts_RF.device) for n in (row_N, feature_N))
    return acts_RF[rows, features].float().cpu().numpy()


class Ranked(NamedTuple):
    """Of each feature others, as lists one after the other."""

    feature_N: Ints
    """Whose it is; rising."""
    item_N: Ints
    count_N: Ints


class Beside:
    """Which features are on, on the rows that are the top examples of features."""

    def __init__(self, top_FK: Ints) -> None:
        """Begins with none.

        Args:
            top_FK: rows of the top examples of each feature; −1: there are no more.
        """
        self.top_FK = top_FK
        self.row_D = np.unique(top_FK[top_FK >= 0])
        self.on_DM = np.full((len(self.row_D), BESIDE), -1, np.int32)

    def add(self, acts_RF: Tensor, row_R: Ints) -> None:
        """Notes what is on, on those of the rows that are somebody's top example."""
        begin, end = np.searchsorted(self.row_D, [row_R[0], row_R[-1] + 1])
        found_R = np.isin(row_R, self.row_D[begin:end])
        if found_R.any():
            place_N = np.searchsorted(self.row_D, row_R[found_R])
            acts_NF = acts_RF[torch.from_numpy(np.flatnonzero(found_R)).to(acts_RF.device)]
            values_NM, feature_NM = acts_NF.topk(min(BESIDE, acts_NF.shape[1]), dim=1)
            on_NM = torch.where(values_NM > 0, feature_NM, -1).int().cpu().numpy()
            self.on_DM[place_N, : on_NM.shape[1]] = on_NM

    def coactive(self, fired_F: Ints) -> Ranked:
        """The features that are on most often on each feature's top examples; of equal ones the rarer first."""
        features = len(self.top_FK)
        if not len(self.row_D):  # nothing ever fires
            return most_frequent(np.empty(0, np.int64), np.empty(0, np.int32), COACTIVE)
        found = []
        for start in range(0, features, FEATURES_AT_ONCE):
            top_MK = self.top_FK[start : start + FEATURES_AT_ONCE]
            on_MKM = self.on_DM[np.searchsorted(self.row_D, np.maximum(top_MK, 0)).clip(max=len(self.row_D) - 1)]
            own_M = np.arange(start, start + len(top_MK))
            counts = (on_MKM >= 0) & (top_MK >= 0)[:, :, None] & (on_MKM != own_M[:, None, None])
            feature_N = np.broadcast_to(own_M[:, None, None], on_MKM.shape)[counts]
            found.append(most_frequent(feature_N, on_MKM[counts], COACTIVE, fired_F))
        return Ranked(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def most_frequent(feature_N: Ints, item_N: NDArray[np.int32], kept: int, rarity: Ints | None = None) -> Ranked:
    """The items that occur most often with each feature, the most frequent first.

    Args:
        feature_N: features.
        item_N: an item for each.
        kept: items of each feature.
        rarity: number of each item by which equally frequent ones are ordered, the smallest first; then, or by
            default, by the item itself.
    """
    size = int(item_N.max(initial=0)) + 1
    pairs, count_P = np.unique(feature_N.astype(np.int64) * size + item_N, return_counts=True)
    feature_P, item_P = np.divmod(pairs, size)
    keys = (item_P, *(() if rarity is None else (rarity[item_P],)), -count_P, feature_P)
    order = np.lexsort(keys)
    feature_P, item_P, count_P = feature_P[order], item_P[order], count_P[order]
    first_P = np.searchsorted(feature_P, feature_P)
    few = np.arange(len(feature_P)) - first_P < kept
    return Ranked(feature_P[few], item_P[few], count_P[few])
