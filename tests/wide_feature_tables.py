"""Tables of a wide SAE's features, constructed at once: for benchmarks, and tests of what these measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from gsae_ray.feature_tables import About, FeatureTables
from gsae_ray.feature_tables.schema import CONTEXTS, FEATURES, TOKENS, VERSION

VOCABULARY, LISTED, HELD_OUT = 50_000, 10, 10_000_000
EDGES = [float(2.0 ** (step / 4)) for step in range(-48, 49)]


def wide_tables(width: int, contexts: int = 10, window: int = 32) -> FeatureTables:
    """Tables of `width` features that fire, each with so many pieces of so many tokens.

    Tokens are drawn from 50,000 by Zipf's law, on a fifth of which a feature is active; lists have ten entries.
    """
    rng = np.random.default_rng(0)
    fired = np.maximum(contexts, rng.lognormal(8, 2, width).astype(np.int64)).clip(max=HELD_OUT)
    largest = rng.lognormal(1, 1, width).astype(np.float32)

    def tokens(*shape: int) -> Any:
        return (rng.zipf(1.2, shape) % VOCABULARY).astype(np.int32)

    def lists(values: Any) -> pa.Array:
        offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
        return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))

    def others() -> Any:
        return rng.integers(width, size=(width, LISTED)).astype(np.int32)

    def falling() -> Any:
        return -np.sort(-rng.uniform(0, 1, (width, LISTED)).astype(np.float32), axis=1)

    bins = np.arange(len(EDGES) - 1)
    shares = np.exp(-((bins - rng.normal(48, 4, (width, 1))) ** 2) / 50)
    histogram = (shares / shares.sum(1, keepdims=True) * fired[:, None]).astype(np.int64)
    features = pa.table(
        {
            **{"feature": np.arange(width, dtype=np.int32), "density": fired / HELD_OUT, "fired": fired},
            **{"max_activation": largest, "mean_activation": largest / 4, "histogram": lists(histogram)},
            "positions": lists(np.diff(np.linspace(0, fired, 17).astype(np.int64), axis=0).T),
            **{"top_tokens": lists(tokens(width, LISTED)), "top_token_counts": lists(others() % 64)},
            **{"raised_tokens": lists(tokens(width, LISTED)), "raised_logits": lists(falling())},
            **{"lowered_tokens": lists(tokens(width, LISTED)), "lowered_logits": lists(-falling())},
            **{"neighbours": lists(others()), "neighbour_cosines": lists(falling())},
            **{"coactive": lists(others()), "coactive_shares": lists(falling())},
            "off": lists(rng.integers(width * contexts, size=(width, LISTED)).astype(np.int32)),
        }
    ).cast(FEATURES)
    pieces = width * contexts
    active = rng.uniform(size=(pieces, window)) < 0.2
    active[:, window // 2] = True
    activations = active * rng.uniform(0, 1, active.shape).astype(np.float32) * np.repeat(largest, contexts)[:, None]
    top = np.tile(np.arange(contexts) < contexts - contexts // 2, width)
    shown = pa.table(
        {
            "feature": np.repeat(np.arange(width, dtype=np.int32), contexts),
            "kind": np.where(top, "top", "quantile"),
            "rank": np.tile(np.arange(contexts, dtype=np.int32), width),
            "quantile": pa.array(rng.uniform(0, 1, pieces).astype(np.float32), mask=top),
            "context": rng.integers(100_000, size=pieces).astype(np.int32),
            "position": np.full(pieces, 100 + window // 2, np.int32),
            "start": np.full(pieces, 100, np.int32),
            "tokens": lists(tokens(pieces, window)),
            "activations": lists(activations.astype(np.float32)),
        }
    ).cast(CONTEXTS)
    texts = pa.table({"token": range(VOCABULARY), "text": [f" word{n}" for n in range(VOCABULARY)]}, schema=TOKENS)
    about = About(
        version=VERSION,
        label="constructed",
        site="blocks.0.hook_resid_post",
        d_sae=width,
        sae="0" * 64,
        heldout="1" * 64,
        rows=HELD_OUT,
        contexts=100_000,
        seed=0,
        histogram_edges=EDGES,
        position_edges=[8 * place for place in range(17)],
        logit_effects="constructed",
    )
    return FeatureTables(about, features, shown, texts)
