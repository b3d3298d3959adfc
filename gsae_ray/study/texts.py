"""The texts of a feature that its raters see: some where it is largest, the others over its range."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import TypedDict

from gsae_ray.feature_tables import FeatureTables
from gsae_ray.feature_tables.schema import TOP


class Text(TypedDict):
    """A piece of text and a feature's activation on each of its tokens."""

    tokens: list[str]
    activations: list[float]


def with_enough_texts(tables: FeatureTables, texts: int) -> npt.NDArray[np.int64]:
    """The features that fire and have so many different texts or more, in their order."""
    return np.flatnonzero(texts_of_each(tables) >= texts)


def texts_of_each(tables: FeatureTables) -> npt.NDArray[np.int64]:
    """How many different texts each feature has [d_sae]; one that does not fire has none."""
    columns = ("feature", "context", "position")
    found = np.unique(np.stack([tables.contexts[name].to_numpy() for name in columns]), axis=1)
    counts = np.bincount(found[0], minlength=tables.about["d_sae"])
    return np.where(tables.features["fired"].to_numpy() > 0, counts, 0)


class Texts:
    """The texts of the features of an SAE."""

    def __init__(self, tables: FeatureTables) -> None:
        self._tables, self._words = tables, tables.texts()

    def of(self, feature: int, texts: int) -> list[Text]:
        """So many texts of a feature that has them, the strongest first.

        Half of them are those where it is largest, the others are spread evenly over its quantiles; where there are too
        few of one kind, more of the other are taken. No text is shown twice.

        Args:
            feature: its number.
            texts: how many.
        """
        rows = self._tables.pieces(feature).to_pylist()
        top = [row for row in rows if row["kind"] == TOP]
        rest = [row for row in rows if row["kind"] != TOP]
        top, rest = _unlike(top, []), _unlike(rest, top)
        half = max(texts - len(rest), min(len(top), -(-texts // 2)))
        chosen = top[:half]
        places = np.linspace(0, len(rest) - 1, texts - len(chosen)).round().astype(int)
        chosen += [rest[place] for place in places]
        chosen.sort(key=lambda row: -max(row["activations"]))
        return [
            Text(
                tokens=[self._words.get(token, "\ufffd") for token in row["tokens"]],
                activations=[float(value) for value in row["activations"]],
            )
            for row in chosen
        ]


def _unlike(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of other places in the text than others, each place once."""
    seen = {(row["context"], row["position"]) for row in others}
    found = []
    for row in rows:
        place = row["context"], row["position"]
        if place not in seen:
            seen.add(place)
            found.append(row)
    return found
