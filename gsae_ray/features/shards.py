"""What a page has of an SAE's features, as JSON in parts: the list of all features, their vocabulary, and shards.

Token ids are places in the vocabulary; these and activations are arrays of little-endian integers in base64, which
browsers decode in a moment and which take a third of what JSON does. A shard has `SHARD` features, and is loaded when
one of them is looked at.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gsae_ray.feature_tables import FeatureTables
from gsae_ray.feature_tables.schema import TOP
from gsae_ray.features.matching import Matches

SHARD = 256
"""Features of a shard: about half a megabyte."""
LEVELS = 255
"""Steps of an activation, as parts of its feature's largest one: the page shows it to 0.2 % of that."""
DIGITS = 4
"""Significant ones of other numbers."""

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens that occur, and their places in the page's list of texts."""

    ids: Array
    """Sorted."""
    texts: list[str]
    """In that order; the last one stands for an id that is not there."""

    @classmethod
    def of(cls, tables: FeatureTables) -> Vocabulary:
        ids = tables.tokens["token"].to_numpy()
        order = np.argsort(ids)
        texts = tables.tokens["text"].to_pylist()
        return cls(ids[order], [*(texts[place] for place in order), "\ufffd"])

    @property
    def dtype(self) -> Any:
        """Of places; its largest number is no place."""
        return np.dtype("<u2" if len(self.texts) < 2**16 else "<u4")

    def places(self, ids: Array) -> Array:
        if not len(self.ids):
            return np.zeros(len(ids), self.dtype)
        found = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return np.where(self.ids[found] == ids, found, len(self.ids)).astype(self.dtype)


def list_of(tables: FeatureTables, vocabulary: Vocabulary) -> dict[str, Any]:
    """What the page lists, sorts and searches: of every feature its numbers and tokens."""
    features = tables.features
    found: dict[str, Any] = {
        "density": _base64(features["density"].to_numpy().astype("<f4")),
        "max": _base64(features["max_activation"].to_numpy().astype("<f4")),
        "bytes": vocabulary.dtype.itemsize,
    }
    for name in ("top", "raised"):
        rectangle = _rectangle(features[f"{name}_tokens"], vocabulary)
        found[name] = {"each": rectangle.shape[1], "tokens": _base64(rectangle)}
    return found


def shards_of(
    tables: FeatureTables, vocabulary: Vocabulary, others: Sequence[Matches] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The shards, by their numbers.

    Args:
        tables: of the SAE.
        vocabulary: its.
        others: the nearest features in each other SAE, in the order in which the page knows these.
    """
    for first in range(0, tables.features.num_rows, SHARD):
        features = tables.features.slice(first, SHARD)
        yield first // SHARD, _shard(first, features, tables.pieces(first, SHARD), vocabulary, others)


def _shard(
    first: int, features: pa.Table, contexts: pa.Table, vocabulary: Vocabulary, others: Sequence[Matches]
) -> dict[str, Any]:
    rows = features.to_pylist()
    pieces = contexts.drop_columns(["tokens", "activations"]).to_pylist()
    tokens, activations = (_flat(contexts[name]) for name in ("tokens", "activations"))
    lengths = np.array([len(tokens) for tokens in contexts["tokens"].to_pylist()], np.int64)
    of = np.array([piece["feature"] - first for piece in pieces], np.int64)
    scales = np.array([row["max_activation"] for row in rows], np.float64)
    np.maximum.at(scales, np.repeat(of, lengths), activations)
    levels = np.ceil(activations / np.maximum(scales[np.repeat(of, lengths)], 1e-30) * LEVELS - 0.5)
    levels = np.where(activations > 0, levels.clip(1, LEVELS), 0).astype(np.uint8)
    shown: list[list[list[Any]]] = [[] for _ in rows]
    begins = np.concatenate([[0], np.cumsum(lengths)])
    for number, piece in enumerate(pieces):
        quantile = None if piece["kind"] == TOP else _round(piece["quantile"])
        peak = piece["position"] - piece["start"]
        shown[of[number]].append(
            [quantile, piece["context"], piece["position"], peak, int(begins[number]), int(lengths[number])]
        )
    return {
        "features": [
            {**_feature(row, vocabulary), "scale": _round(scale), "pieces": found, "others": _others(others, row)}
            for row, scale, found in zip(rows, scales, shown, strict=True)
        ],
        "tokens": _base64(vocabulary.places(tokens)),
        "activations": _base64(levels),
    }


def _feature(row: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    histogram = np.array(row["histogram"], np.int64)
    filled = np.flatnonzero(histogram)
    first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, -1)
    return {
        "density": _round(row["density"]),
        "fired": row["fired"],
        "mean": _round(row["mean_activation"]),
        "max": _round(row["max_activation"]),
        "histogram": [first, histogram[first : last + 1].tolist()],
        "positions": row["positions"],
        **{
            name: [vocabulary.places(np.array(row[tokens], np.int64)).tolist(), [_round(n) for n in row[numbers]]]
            for name, tokens, numbers in (
                ("top", "top_tokens", "top_token_counts"),
                ("raised", "raised_tokens", "raised_logits"),
                ("lowered", "lowered_tokens", "lowered_logits"),
            )
        },
        "near": [row["neighbours"], [_round(cosine) for cosine in row["neighbour_cosines"]]],
        "coactive": [row["coactive"], [_round(share) for share in row["coactive_shares"]]],
    }


def _others(others: Sequence[Matches], row: dict[str, Any]) -> list[list[Any]]:
    """(number of the other SAE, its nearest feature, their cosine), the nearest first."""
    feature = row["feature"]
    found = [[n, int(m.feature[feature]), _round(float(m.cosine[feature]))] for n, m in enumerate(others)]
    return sorted((one for one in found if one[1] >= 0), key=lambda one: -one[2])


def _rectangle(column: pa.ChunkedArray, vocabulary: Vocabulary) -> Array:
    """Lists of tokens as places [features, longest], filled up with the number that is no place."""
    rows = column.to_pylist()
    lengths = np.array([len(row) for row in rows], np.int64)
    found = np.full((len(rows), max(lengths, default=0)), np.iinfo(vocabulary.dtype).max, vocabulary.dtype)
    found[np.arange(found.shape[1]) < lengths[:, None]] = vocabulary.places(_flat(column))
    return found


def _flat(column: pa.ChunkedArray) -> Array:
    return np.asarray(column.combine_chunks().flatten())


def _round(number: float) -> float:
    return float(f"{number:.{DIGITS}g}") if isinstance(number, float) else number


def _base64(array: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
