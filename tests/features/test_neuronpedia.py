"""Neuronpedia's import format: the keys and types of its published classes, and our numbers in them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pyarrow as pa
import pytest
from random_feature_tables import random_tables
from random_saes import config

from gsae_ray.errors import UserError
from gsae_ray.evaluation.feature_firings import EDGES
from gsae_ray.feature_tables import FeatureTables
from gsae_ray.features.neuronpedia import batches, check_layer

INTS, FLOATS, TEXTS = [int], [float], [str]
# `NeuronpediaDashboardBatch`, `…Feature` and `…Activation` of sae-dashboard 0.8.0 (PyPI), in
# sae_dashboard/neuronpedia/neuronpedia_dashboard.py: the arguments of their `__init__`, which `to_dict` writes out; of
# activations those that begin with `dfa_` are optional, and left out.
BATCH: dict[str, Any] = {"model_id": str, "layer": int, "sae_set": str, "sae_id_suffix": str, "features": [dict]}
FEATURE: dict[str, Any] = {
    "feature_index": int,
    "neuron_alignment_indices": INTS,
    "neuron_alignment_values": FLOATS,
    "neuron_alignment_l1": FLOATS,
    "correlated_neurons_indices": INTS,
    "correlated_neurons_l1": FLOATS,
    "correlated_neurons_pearson": FLOATS,
    "correlated_features_indices": INTS,
    "correlated_features_l1": FLOATS,
    "correlated_features_pearson": FLOATS,
    "neg_str": TEXTS,
    "neg_values": FLOATS,
    "pos_str": TEXTS,
    "pos_values": FLOATS,
    "frac_nonzero": float,
    "freq_hist_data_bar_values": FLOATS,
    "freq_hist_data_bar_heights": FLOATS,
    "logits_hist_data_bar_heights": FLOATS,
    "logits_hist_data_bar_values": FLOATS,
    "n_prompts_total": int,
    "n_tokens_in_prompt": int,
    "dataset": str,
    "activations": [dict],
    "decoder_weights_dist": FLOATS,
    "vector": FLOATS,
}
ACTIVATION: dict[str, Any] = {
    "bin_min": float,
    "bin_max": float,
    "bin_contains": float,
    "tokens": TEXTS,
    "values": FLOATS,
    "qualifying_token_index": int,
}
CFG = config(
    "gated", metadata={"model": {"name": "gpt2-small", "context_size": 128}, "dataset": {"name": "openwebtext"}}
)


def conforms(value: dict[str, Any], schema: dict[str, Any]) -> None:
    assert value.keys() == schema.keys()
    for name, kind in schema.items():
        if isinstance(kind, list):
            assert isinstance(value[name], list) and {type(one) for one in value[name]} <= {*kind}, name
        else:
            assert type(value[name]) is kind, name


@pytest.fixture(scope="module")
def tables() -> FeatureTables:
    return random_tables(130, contexts=5, window=8, dead=2)


@pytest.fixture(scope="module")
def features(tables: FeatureTables) -> list[dict[str, Any]]:
    made = [json.loads(json.dumps(batch)) for batch in batches(tables, "trial", CFG)]
    for batch in made:
        conforms(batch, BATCH)
    assert [len(batch["features"]) for batch in made] == [128, 2]
    head = ("gpt2-small", 2, "gsae-ray-resid_post", "trial")
    assert {tuple(batch[name] for name in ("model_id", "layer", "sae_set", "sae_id_suffix")) for batch in made} == {
        head
    }
    return [feature for batch in made for feature in batch["features"]]


def test_keys_and_types_are_those_of_the_published_classes(features: list[dict[str, Any]]) -> None:
    for feature in features:
        conforms(feature, FEATURE)
        for activation in feature["activations"]:
            conforms(activation, ACTIVATION)
            assert len(activation["tokens"]) == len(activation["values"])


def test_the_numbers_are_those_of_the_tables(features: list[dict[str, Any]], tables: FeatureTables) -> None:
    words, row = tables.texts(), tables.features.slice(129, 1).to_pylist()[0]
    feature = features[129]
    assert feature["pos_str"] == [words[token] for token in row["raised_tokens"]]
    assert feature["neg_values"] == row["lowered_logits"]
    assert feature["frac_nonzero"] == row["density"] and sum(feature["freq_hist_data_bar_heights"]) == row["fired"]
    assert len(feature["freq_hist_data_bar_values"]) == len(feature["freq_hist_data_bar_heights"]), "in parallel"
    assert (feature["n_prompts_total"], feature["n_tokens_in_prompt"]) == (100, 128)
    assert feature["dataset"] == "openwebtext"


def test_pieces_are_the_top_ones_and_an_example_of_each_bin(features: list[dict[str, Any]]) -> None:
    # Firing tokens have 9.5, 9.4 (top), and 9.3, 9.2, 9.1: three bins that meet half-way.
    found = [(a["bin_min"], a["bin_max"], a["bin_contains"]) for a in features[100]["activations"]]
    third = pytest.approx(1 / 3)
    assert found == [(-1, 9.5, -1)] * 2 + [(9.25, 9.5, third), (9.15, 9.25, third), (0, 9.15, third)]
    for activation in features[100]["activations"]:
        assert activation["values"][activation["qualifying_token_index"]] == max(activation["values"])


def test_small_activations_stay_and_bars_of_a_histogram_are_told_apart(tables: FeatureTables) -> None:
    rows = tables.contexts.to_pylist()
    small = [{**row, "activations": [value * 1e-6 for value in row["activations"]]} for row in rows]
    about: Any = {**tables.about, "histogram_edges": (EDGES[: len(tables.about["histogram_edges"])]).tolist()}
    contexts = pa.Table.from_pylist(small, schema=tables.contexts.schema)
    batch, _ = batches(dataclasses.replace(tables, about=about, contexts=contexts), "trial", CFG)
    feature = batch["features"][100]
    assert all(max(activation["values"]) > 0 for activation in feature["activations"])
    bars = feature["freq_hist_data_bar_values"]
    assert bars[0] < 2**-11 and len(set(bars)) == len(bars) > 5


def test_a_feature_that_never_fires_is_there_without_activations(features: list[dict[str, Any]]) -> None:
    assert features[0]["activations"] == [] and features[0]["frac_nonzero"] == 0
    assert features[0]["freq_hist_data_bar_values"] == []


def test_a_site_of_no_layer_is_refused() -> None:
    with pytest.raises(UserError, match="--neuronpedia: model.norm:output is no point of a layer"):
        check_layer("model.norm:output")
    assert check_layer("blocks.3.mlp.hook_in:hook_mlp_out") == 3
