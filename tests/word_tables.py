"""Tables of features of which each fires on one word of its own, and on nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from random_feature_tables import random_tables

from gsae_ray.feature_tables import FeatureTables
from gsae_ray.feature_tables.schema import CONTEXTS, TOKENS

FILLERS = [" the", " of", " and", " in", " that", " with", " from", " <<", ' "\n', " ⟨é⟩"]
WINDOW = 8


def word_tables(d_sae: int = 12, contexts: int = 10, seed: int = 0, dead: int = 1) -> FeatureTables:
    """As `random_tables`; feature f fires on the word `word{f}`, in pieces of text of which no two overlap."""
    found, rng, rows = random_tables(d_sae, contexts, WINDOW, seed, dead=dead), np.random.default_rng(seed), []
    for number, row in enumerate(found.contexts.to_pylist()):
        tokens, activations = rng.integers(len(FILLERS), size=WINDOW), np.zeros(WINDOW)
        place = int(rng.integers(WINDOW))
        tokens[place], activations[place] = len(FILLERS) + row["feature"], 9.5 - row["rank"] / 10
        rows.append({**row, "context": number, "tokens": tokens.tolist(), "activations": activations.tolist()})
    texts = [*FILLERS, *(f" word{feature}" for feature in range(d_sae))]
    tokens_table = pa.table({"token": range(len(texts)), "text": texts}, schema=TOKENS)
    return dataclasses.replace(found, contexts=pa.Table.from_pylist(rows, schema=CONTEXTS), tokens=tokens_table)
