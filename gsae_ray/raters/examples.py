"""The pieces of text of a feature that a rater sees: for its explanation, and held back from that for its scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from gsae_ray.feature_tables import FeatureTables
from gsae_ray.feature_tables.schema import TOP

EXPLAINED, FEWEST_EXPLAINED = 10, 2
"""Pieces that an explanation is made of, at most and at least."""
HELD, FEWEST_HELD = 10, 3
"""Pieces of each kind, with the feature on and off, that it is scored on, at most and at least."""


class Piece(NamedTuple):
    """Some tokens of a text in a row."""

    tokens: tuple[str, ...]
    on: tuple[bool, ...]
    """Whether the feature fires on each of them."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The pieces of a feature; none is among them twice, and those of the scores overlap with none of `explained`."""

    feature: int
    explained: tuple[Piece, ...]
    """Some of those where it is largest: every other one, so that the scores have strong ones too."""
    held: tuple[Piece, ...]
    """Others in which it fires."""
    off: tuple[Piece, ...]
    """Pieces of other features of the same SAE in which it fires nowhere."""


def draw(tables: FeatureTables, features: int, seed: int) -> list[Examples]:
    """So many features of an SAE, drawn uniformly from those that fire and have enough pieces; or all of these.

    With a larger number those of a smaller one are among them.

    Args:
        tables: of its features.
        features: how many.
        seed: the same draws the same.
    """
    words = tables.texts()
    found: list[Examples] = []
    shown_F = np.bincount(tables.contexts["feature"].to_numpy(), minlength=tables.features.num_rows)
    off_F = pc.list_value_length(tables.features["off"]).to_numpy()
    fires_F = tables.features["fired"].to_numpy() > 0
    may_do = np.flatnonzero(fires_F & (shown_F >= FEWEST_EXPLAINED + FEWEST_HELD) & (off_F >= FEWEST_HELD))
    for feature in np.random.default_rng(seed).permutation(may_do):
        if len(found) == features:
            break
        if (examples := examples_of(tables, int(feature), words)) is not None:
            found.append(examples)
    return found


def examples_of(tables: FeatureTables, feature: int, words: Mapping[int, str]) -> Examples | None:
    """The pieces of a feature; None where it has too few.

    Args:
        tables: of its SAE.
        feature: its number.
        words: token id -> text, as `tables.texts()` has it.
    """
    rows = tables.pieces(feature).to_pylist()
    top = list(_apart([row for row in rows if row["kind"] == TOP], ()))
    explained = top[::2][:EXPLAINED]
    others = [row for row in rows if row not in explained]
    held = _spread(list(_apart(others, explained)), HELD)
    beside = tables.contexts.take(tables.features["off"][feature].values).to_pylist()
    off = list(_apart(beside, explained))[: len(held)]
    if len(explained) < FEWEST_EXPLAINED or len(off) < FEWEST_HELD:
        return None
    return Examples(
        feature,
        tuple(_piece(row, words) for row in explained),
        tuple(_piece(row, words) for row in held),
        tuple(Piece(_piece(row, words).tokens, (False,) * len(row["tokens"])) for row in off),
    )


def _apart(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows that share no token of the held-out text with one before, or with one of the others."""
    taken = list(others)
    for row in rows:
        if not any(_overlap(row, one) for one in taken):
            taken.append(row)
            yield row


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one["context"] != other["context"]:
        return False
    begin, end = max(one["start"], other["start"]), min(of["start"] + len(of["tokens"]) for of in (one, other))
    return bool(begin < end)


def _spread(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """So many of the rows, evenly over them."""
    return [rows[place] for place in np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]


def _piece(row: dict[str, Any], words: Mapping[int, str]) -> Piece:
    return Piece(
        tuple(words.get(token, "\ufffd") for token in row["tokens"]), tuple(value > 0 for value in row["activations"])
    )
