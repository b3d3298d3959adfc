"""What tests of prepared tokens share: documents, sweeps over them, and what is read back."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.sweep import Sweep
from gsae_ray.data.prepare import prepare_tokens
from gsae_ray.data.tokens import TokenStore
from gsae_ray.errors import UserError
from gsae_ray.language_model.loading import load_tokenizer

CONTEXT, EOS = 16, 0
TOKENIZER = load_tokenizer(ModelSettings(name="builtin"))
RANDOM = random.Random(0)
DOCUMENTS = [f"document {i}: " + " ".join(RANDOM.choices(["self", "import", "x"], k=i % 40)) for i in range(100)]
IDS = [tuple(TOKENIZER(document)["input_ids"]) for document in DOCUMENTS]
ALL_TOKENS = sum(len(ids) + 1 for ids in IDS)


def sweep(name: Path | str, tokens: int = 600, held_out: int = 60, **changes: Any) -> Sweep:
    """`changes`: fields of the sections, as `dataset_seed=1`."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": "builtin", "context_size": CONTEXT},
        "dataset": {"name": str(name), "shuffle_tokens": 100},
        "training": {"tokens": tokens, "batch_size": 10},
        "evaluation": {"tokens": held_out, "fraction": 0.25},
    }
    saes = changes.pop("saes", [{"architecture": "standard", "widths": [8], "l1_coefficient": [1]}])
    for key, value in changes.items():
        section, _, field = key.partition("_")
        sections[section][field] = value
    return Sweep.model_validate(
        {"name": "t", "sites": {"layers": [1, 2], "points": ["resid_post"]}, "saes": saes, **sections}
    )


def write_jsonl(path: Path, rows: list[Any], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: row}) + "\n" for row in rows))
    return path


def blocks(store: TokenStore) -> list[list[list[int]]]:
    return [store.block(index).tolist() for index in range(len(store.rows))]


def stream(store: TokenStore, lead: int = 0) -> list[int]:
    """All training tokens one after the other, without the BOS that leads each context."""
    return [token for block in blocks(store) for context in block for token in context[lead:]]


def documents_in(tokens: list[int]) -> list[tuple[int, ...]]:
    """What stands between end-of-text tokens; what is cut off at the end is left out."""
    pieces = [tuple(group) for is_end, group in itertools.groupby(tokens, lambda t: t == EOS) if not is_end]
    return pieces if tokens[-1] == EOS else pieces[:-1]


def complaint(wanted: Sweep, out: Path, error: type[UserError] = UserError) -> str:
    with pytest.raises(error) as caught:
        prepare_tokens(wanted, out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_of(store: TokenStore) -> list[int]:
    return [int(store.kept(store.block(index)).sum()) for index in range(len(store.rows))]
