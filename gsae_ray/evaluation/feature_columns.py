"""The tables of an SAE's features, from what two passes over held-out text have found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from gsae_ray.evaluation.feature_directions import Nearest
from gsae_ray.evaluation.feature_firings import Firings, Shown
from gsae_ray.evaluation.feature_windows import Elsewhere, Ranked, Windows, most_frequent
from gsae_ray.feature_tables.schema import CONTEXTS, FEATURES

TOP_TOKENS = 10
"""Tokens that are kept of each feature."""
FEATURES_AT_ONCE = 8192
"""Features whose tokens are counted at a time."""


def top_tokens(firings: Firings, tokens_ET: NDArray[np.int32]) -> Ranked:
    """The tokens on which features fire, of their sampled rows."""
    rows_FS, found = firings.sample.rows_FK, []
    for start in range(0, len(rows_FS), FEATURES_AT_ONCE):
        rows_MS = rows_FS[start : start + FEATURES_AT_ONCE]
        feature_N, _ = np.nonzero(rows_MS >= 0)
        found.append(most_frequent(feature_N + start, tokens_ET.ravel()[rows_MS[rows_MS >= 0]], TOP_TOKENS))
    return Ranked(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def features_table(
    firings: Firings,
    rows: int,
    tokens: Ranked,
    logits: tuple[Nearest, Nearest] | None,
    near: Nearest,
    beside: Ranked,
    shown: Shown,
    elsewhere: Elsewhere,
) -> pa.Table:
    """`feature_tables.schema.FEATURES`.

    Args:
        firings: where features fire.
        rows: that were looked at.
        tokens: on which they fire.
        logits: which are raised and lowered; None where the site does not allow it.
        near: their neighbours.
        beside: what is on at their top examples.
        shown: with their top examples.
        elsewhere: where they are off.
    """
    features, fired_F = len(firings.fired_F), firings.fired_F
    examples_F = (shown.top_FK >= 0).sum(1)
    if logits is None:
        none_FK = torch.empty(features, 0)
        logits = Nearest(none_FK, none_FK), Nearest(none_FK, none_FK)
    raised, lowered = logits
    off_P, window_P = elsewhere.off()
    columns: dict[str, Any] = {
        "feature": np.arange(features, dtype=np.int32),
        "density": fired_F / max(rows, 1),
        "fired": fired_F,
        "max_activation": firings.max_F,
        "mean_activation": (firings.sum_F / np.maximum(fired_F, 1)).astype(np.float32),
        "histogram": _lists(firings.histogram_FH.astype(np.int64)),
        "positions": _lists(firings.positions_FP.astype(np.int64)),
        "top_tokens": _ranked(tokens, tokens.item_N.astype(np.int32), features),
        "top_token_counts": _ranked(tokens, tokens.count_N.astype(np.int32), features),
        "raised_tokens": _lists(raised.index_FK.numpy().astype(np.int32)),
        "raised_logits": _lists(raised.value_FK.numpy()),
        "lowered_tokens": _lists(lowered.index_FK.numpy().astype(np.int32)),
        "lowered_logits": _lists(lowered.value_FK.numpy()),
        "neighbours": _lists(near.index_FK.numpy().astype(np.int32)),
        "neighbour_cosines": _lists(near.value_FK.numpy()),
        "coactive": _ranked(beside, beside.item_N.astype(np.int32), features),
        "coactive_shares": _ranked(
            beside, (beside.count_N / np.maximum(examples_F[beside.feature_N], 1)).astype(np.float32), features
        ),
        "off": pa.ListArray.from_arrays(np.searchsorted(off_P, np.arange(features + 1)).astype(np.int32), window_P),
    }
    return pa.table(columns, schema=FEATURES)


def contexts_table(windows: Windows, shown: Shown, tokens_ET: NDArray[np.int32]) -> pa.Table:
    """`feature_tables.schema.CONTEXTS`."""
    positions, top = tokens_ET.shape[1], shown.top_FK.shape[1]
    is_top_W = windows.place_W < top
    place_W = windows.place_W - np.where(is_top_W, 0, top)
    share_W = np.zeros(len(place_W), np.float32)
    share_W[~is_top_W] = shown.share_FQ[windows.feature_W[~is_top_W], place_W[~is_top_W]]
    offsets = np.concatenate([[0], np.cumsum(windows.length_W)]).astype(np.int32)
    offset_T = np.arange(windows.activations_WT.shape[1])
    inside_WT = offset_T < windows.length_W[:, None]
    whole = bool(inside_WT.all())  # then without a copy of what is largest
    activations_N = windows.activations_WT.ravel() if whole else windows.activations_WT[inside_WT]
    tokens_N = np.empty(int(offsets[-1]), np.int32)
    for start in range(0, len(place_W), 2**16):  # so that no index of every token is in memory
        part = slice(start, start + 2**16)
        index_WT = windows.first_W[part, None] + offset_T
        ends = offsets[start], offsets[min(start + 2**16, len(place_W))]
        tokens_N[ends[0] : ends[1]] = tokens_ET.ravel()[index_WT[inside_WT[part]]]
    kinds = pa.DictionaryArray.from_arrays(pa.array((~is_top_W).astype(np.int8)), pa.array(["top", "quantile"]))
    columns: dict[str, Any] = {
        "feature": windows.feature_W,
        "kind": kinds.cast(pa.string()),
        "rank": place_W.astype(np.int32),
        "quantile": pa.array(share_W, mask=is_top_W),
        "context": (windows.row_W // positions).astype(np.int32),
        "position": (windows.row_W % positions).astype(np.int32),
        "start": (windows.first_W % positions).astype(np.int32),
        "tokens": pa.ListArray.from_arrays(offsets, tokens_N),
        "activations": pa.ListArray.from_arrays(offsets, activations_N),
    }
    return pa.table(columns, schema=CONTEXTS)


def token_ids(features: pa.Table, contexts: pa.Table) -> list[int]:
    """The ids of all tokens that occur in the two tables."""
    columns = [features[name] for name in ("top_tokens", "raised_tokens", "lowered_tokens")] + [contexts["tokens"]]
    found: list[int] = np.unique(np.concatenate([np.unique(_values(column)) for column in columns])).tolist()
    return found


def _values(column: pa.ChunkedArray) -> NDArray[np.int32]:
    return np.concatenate([chunk.values.to_numpy() for chunk in column.chunks] or [np.empty(0, np.int32)])


def _lists(values_FK: NDArray[Any]) -> pa.ListArray:
    """Lists of equal length."""
    offsets = np.arange(len(values_FK) + 1, dtype=np.int32) * values_FK.shape[1]
    return pa.ListArray.from_arrays(offsets, values_FK.ravel())


def _ranked(ranked: Ranked, values_N: NDArray[Any], features: int) -> pa.ListArray:
    offsets = np.searchsorted(ranked.feature_N, np.arange(features + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values_N)
