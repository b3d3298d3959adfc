"""The columns of the tables of features, and what each of them means."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

VERSION = 3
"""Of these tables; a change of what a column means raises it."""


TOP = "top"
"""The kind of pieces of text in which a feature is largest."""


def described(columns: dict[str, tuple[Any, str]], about: dict[str, str]) -> pa.Schema:
    """A schema whose metadata says what each column means: name -> (type, meaning)."""
    fields = [pa.field(name, type_, metadata={"meaning": meaning}) for name, (type_, meaning) in columns.items()]
    return pa.schema(fields, metadata=about)


def _schema(columns: dict[str, tuple[Any, str]]) -> pa.Schema:
    return described(columns, {"gsae_ray.feature_tables": str(VERSION)})


_INTS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())

FEATURES = _schema(
    {
        "feature": (pa.int32(), "number of the feature: its row of W_dec"),
        "density": (pa.float64(), "share of held-out rows on which it fires"),
        "fired": (pa.int64(), "held-out rows on which it fires"),
        "max_activation": (pa.float32(), "its largest activation; 0 where it never fires"),
        "mean_activation": (pa.float32(), "mean over the rows on which it fires; 0 where it never fires"),
        "histogram": (pa.list_(pa.int64()), "rows by activation, of those on which it fires; edges in about.json"),
        "positions": (pa.list_(pa.int64()), "rows by position in the context, of those on which it fires; edges there"),
        "top_tokens": (_INTS, "ids of the tokens on which it fires, of sampled rows; the most frequent first"),
        "top_token_counts": (_INTS, "how many of the sampled rows each of them is"),
        "raised_tokens": (_INTS, "ids of the tokens whose logits its decoder row raises most"),
        "raised_logits": (_FLOATS, "by how much, for each of them; about.json says how they are made"),
        "lowered_tokens": (_INTS, "ids of the tokens whose logits its decoder row lowers most"),
        "lowered_logits": (_FLOATS, "by how much, for each of them: numbers below 0"),
        "neighbours": (_INTS, "the features whose decoder rows have the largest cosine with its own"),
        "neighbour_cosines": (_FLOATS, "cosine of each of them"),
        "coactive": (_INTS, "the features that are on most often where it is largest"),
        "coactive_shares": (_FLOATS, "share of its top examples on which each of them is on"),
        "off": (_INTS, "rows of contexts.parquet, of other features, drawn at random, in which it is off throughout"),
    }
)
"""One row for each feature, in their order."""

CONTEXTS = _schema(
    {
        "feature": (pa.int32(), "number of the feature"),
        "kind": (pa.string(), "top: where it is largest; quantile: drawn from all rows on which it fires"),
        "rank": (pa.int32(), "0 for the first of its kind, the largest activation first"),
        "quantile": (pa.float32(), "share of the rows on which it fires whose activation is smaller; null for top"),
        "context": (pa.int32(), "number of the held-out context"),
        "position": (pa.int32(), "position of the firing token in that context"),
        "start": (pa.int32(), "position of the first token that is shown"),
        "tokens": (_INTS, "ids of the tokens that are shown"),
        "activations": (_FLOATS, "the feature's activation on each of them; 0 where it is off"),
    }
)
"""One row for each piece of text that is shown, by feature, kind (top first) and rank."""

TOKENS = _schema(
    {
        "token": (pa.int32(), "id of a token that occurs in the other tables"),
        "text": (pa.string(), "what it stands for in a text"),
    }
)
