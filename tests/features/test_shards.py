"""What a page is given of features: decoded as the page does it, it is what the tables say."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from random_feature_tables import random_tables
from wide_feature_tables import wide_tables

from gsae_ray.feature_tables import FeatureTables, read
from gsae_ray.feature_tables.schema import TOKENS
from gsae_ray.features.matching import Matches
from gsae_ray.features.page import data_of, one_file, page_of, script_of
from gsae_ray.features.shards import SHARD, Vocabulary, list_of, shards_of

ODD = ["</script><script>alert(1)</script>", "🙂", "\n", "\t", "\u2028", "<!--", "\\", '"', "'", "&lt;", "", "\r"]


@pytest.fixture(scope="module")
def tables() -> FeatureTables:
    """More than a shard of features, with texts that want to be something else."""
    made = random_tables(SHARD + 10, contexts=4, window=8, dead=3)
    texts = [ODD[n % len(ODD)] for n in range(made.tokens.num_rows)]
    order = np.random.default_rng(0).permutation(len(texts))  # ids in any order
    tokens = pa.table({"token": order, "text": [texts[n] for n in order]}, schema=TOKENS)
    return FeatureTables(made.about, made.features, made.contexts, tokens)


def decoded(text: str, dtype: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_pieces_of_text_are_those_of_the_tables(tables: FeatureTables) -> None:
    vocabulary, words = Vocabulary.of(tables), tables.texts()
    rows = tables.contexts.to_pylist()
    shards = dict(shards_of(tables, vocabulary))
    assert list(shards) == [0, 1] and sum(len(shard["features"]) for shard in shards.values()) == SHARD + 10
    for feature in (3, SHARD - 1, SHARD, SHARD + 9):
        shard = shards[feature // SHARD]
        told = shard["features"][feature % SHARD]
        tokens, levels = decoded(shard["tokens"], "<u2"), decoded(shard["activations"], "u1")
        mine = [row for row in rows if row["feature"] == feature]
        assert len(told["pieces"]) == len(mine) == 4
        for (quantile, context, position, peak, begin, length), row in zip(told["pieces"], mine, strict=True):
            assert quantile == (None if row["kind"] == "top" else pytest.approx(row["quantile"], rel=1e-3))
            assert (context, position, peak) == (row["context"], row["position"], row["position"] - row["start"])
            texts = [vocabulary.texts[place] for place in tokens[begin : begin + length]]
            assert texts == [words[token] for token in row["tokens"]]
            values = levels[begin : begin + length] * told["scale"] / 255
            assert values == pytest.approx(row["activations"], abs=0.002 * told["scale"])
            assert [level > 0 for level in levels[begin : begin + length]] == [a > 0 for a in row["activations"]]


def test_the_numbers_of_a_feature_are_those_of_the_tables(tables: FeatureTables) -> None:
    row = tables.features.slice(SHARD + 1, 1).to_pylist()[0]
    others = [Matches(np.full(SHARD + 10, place), np.full(SHARD + 10, place / 10, np.float32)) for place in (2, 7, -1)]
    told = dict(shards_of(tables, Vocabulary.of(tables), others))[1]["features"][1]
    start, counts = told["histogram"]
    assert [0] * start + counts + [0] * (len(row["histogram"]) - start - len(counts)) == row["histogram"]
    assert (told["fired"], told["max"]) == (row["fired"], 9.5)
    assert told["near"] == [row["neighbours"], pytest.approx(row["neighbour_cosines"], rel=1e-3)]
    assert told["others"] == [[1, 7, 0.7], [0, 2, 0.2]], "the nearest first, without those that have no match"
    assert told["top"][1] == row["top_token_counts"] and told["raised"][1] == row["raised_logits"]


def test_a_feature_that_never_fires_has_nothing_to_show(tables: FeatureTables) -> None:
    dead = dict(shards_of(tables, Vocabulary.of(tables)))[0]["features"][0]
    assert dead["fired"] == 0 and dead["pieces"] == [] and dead["histogram"] == [0, []] and dead["top"] == [[], []]


def test_the_list_has_every_feature_with_its_tokens(tables: FeatureTables) -> None:
    vocabulary, words = Vocabulary.of(tables), tables.texts()
    found = list_of(tables, vocabulary)
    assert decoded(found["density"], "<f4") == pytest.approx(tables.features["density"].to_numpy())
    top = decoded(found["top"]["tokens"], "<u2").reshape(SHARD + 10, found["top"]["each"])
    assert (top[:3] == 0xFFFF).all(), "no token"
    for feature in (3, SHARD + 9):
        texts = [vocabulary.texts[place] for place in top[feature] if place != 0xFFFF]
        assert texts == [words[token] for token in tables.features["top_tokens"][feature].as_py()]


def test_a_token_without_a_text_is_shown_as_one(tables: FeatureTables) -> None:
    vocabulary = Vocabulary.of(tables)
    assert vocabulary.texts[vocabulary.places(np.array([10_000]))[0]] == "\ufffd"
    empty = Vocabulary(np.array([], np.int32), ["\ufffd"])
    assert empty.places(np.array([3])).tolist() == [0]
    assert Vocabulary(np.arange(70_000), [""] * 70_001).places(np.array([69_999])).tolist() == [69_999]


def test_no_text_can_end_a_script_or_begin_one(tables: FeatureTables) -> None:
    for name, value in data_of(tables):
        script = script_of(name, value)
        assert script.startswith(f'gsaeData("{name}",') and script.endswith(");\n")
        assert not set("<>&\u2028\u2029") & set(script) and script.count("\n") == 1
        assert json.loads(script.removeprefix(f'gsaeData("{name}",').removesuffix(");\n")) == value
    whole = one_file(tables, "</title><script>", 2**24)
    assert whole is not None and whole.count("<script") == page_of(tables, "").count("<script") + 4
    assert "alert(1)<" not in whole and "</title><script>" not in whole


def test_a_page_that_would_be_too_large_is_none(tables: FeatureTables) -> None:
    assert one_file(tables, "trial", 10_000) is None


def test_constructed_tables_are_tables(tmp_path: Path) -> None:
    """Those that `tests/benchmarks/feature_pages.py` measures the page of."""
    made = wide_tables(64, contexts=4, window=8)
    made.write(tmp_path)
    found = read(tmp_path)
    assert found is not None and found.about == made.about and found.contexts.num_rows == 4 * 64
    data = dict(data_of(found))
    assert {*data} == {"list", "tokens", "features_0"} and len(data["features_0"]["features"]) == 64
    assert all(sum(told["positions"]) == told["fired"] for told in data["features_0"]["features"])
