"""Features in the format that Neuronpedia imports: JSON batches, as SAEDashboard's Neuronpedia runner writes them.

The format is that of `NeuronpediaDashboardBatch` (sae-dashboard 0.8.0, neuronpedia/neuronpedia_dashboard.py), which
Neuronpedia's `convert-saedashboard-to-neuronpedia-export.py` reads. What our tables do not have are empty lists:
alignment with neurons, correlations, the histogram of all logits, and weights of attention heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gsae_ray.config.site import Site
from gsae_ray.errors import UserError
from gsae_ray.feature_tables import FeatureTables
from gsae_ray.feature_tables.schema import TOP
from gsae_ray.saes import config_file
from gsae_ray.saes.sae_config import SAEConfig

BATCH = 128
"""Features of a file, as the runner has them unless something else is asked for."""
DIGITS = 4
"""Significant ones: the runner rounds to three decimal places, at which small activations would be 0."""
_ABSENT = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson"),
    *("correlated_features_indices", "correlated_features_l1", "correlated_features_pearson"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist", "vector"),
)
_TOP = {"bin_min": -1.0, "bin_contains": -1.0}
"""What the runner says of the group with the largest activations."""


def check_layer(site: str) -> int:
    """The layer of a site: Neuronpedia files SAEs by it.

    Raises:
        UserError: it has none.
    """
    layer = Site(site).layer
    if layer is None:
        raise UserError(f"--neuronpedia: {site} is no point of a layer, by which Neuronpedia files SAEs; leave it out")
    return layer


def write_neuronpedia(tables: FeatureTables, trial: str, sae: Path, folder: Path) -> None:
    """Writes `batch-0.json` and so on.

    Args:
        tables: of the SAE.
        trial: its name, which is the suffix of its id there.
        sae: the folder of the SAE, which says of which model and data it is.
        folder: to write to; it is made.

    Raises:
        UserError: its site is of no layer.
    """
    cfg, _ = config_file.decode((sae / config_file.CONFIG_FILE).read_bytes())
    folder.mkdir(parents=True)
    for number, batch in enumerate(batches(tables, trial, cfg)):
        text = json.dumps(batch, allow_nan=False, ensure_ascii=False)
        (folder / f"batch-{number}.json").write_text(text, "utf-8")


def batches(tables: FeatureTables, trial: str, cfg: SAEConfig) -> Iterator[dict[str, Any]]:
    """The batches, as JSON values; arguments and errors as of `write_neuronpedia`."""
    about, words = tables.about, tables.texts()
    head = {
        "model_id": str(cfg.section("model").get("name", "")),
        "layer": check_layer(about["site"]),
        "sae_set": f"gsae-ray-{Site(about['site']).point.replace(':', '-')}",
        "sae_id_suffix": trial,
    }
    context = int(cfg.section("model").get("context_size") or 0)
    of_all = {
        "n_prompts_total": about["contexts"],
        "n_tokens_in_prompt": context,
        "dataset": str(cfg.section("dataset").get("name") or ""),
    }
    edges = np.array(about["histogram_edges"])
    for first in range(0, about["d_sae"], BATCH):
        rows = tables.features.slice(first, BATCH).to_pylist()
        pieces: dict[int, list[dict[str, Any]]] = {}
        for piece in tables.pieces(first, BATCH).to_pylist():
            pieces.setdefault(piece["feature"], []).append(piece)
        features = [{**_feature(row, edges, words), **of_all} for row in rows]
        for row, feature in zip(rows, features, strict=True):
            feature["activations"] = _activations(pieces.get(row["feature"], []), row["max_activation"], words)
        yield {**head, "features": features}


def _feature(row: dict[str, Any], edges: np.ndarray[Any, Any], words: dict[int, str]) -> dict[str, Any]:
    """A feature without its activations. The two arrays of a histogram have to have one length."""
    counts = np.array(row["histogram"])
    filled = np.flatnonzero(counts)
    return {
        "feature_index": row["feature"],
        **{name: [] for name in _ABSENT},
        "neg_str": _texts(row["lowered_tokens"], words),
        "neg_values": _rounded(row["lowered_logits"]),
        "pos_str": _texts(row["raised_tokens"], words),
        "pos_values": _rounded(row["raised_logits"]),
        "frac_nonzero": float(row["density"]),
        "freq_hist_data_bar_values": _rounded(((edges[:-1] + edges[1:]) / 2)[filled]),
        "freq_hist_data_bar_heights": [float(count) for count in counts[filled]],
    }


def _activations(pieces: Sequence[dict[str, Any]], largest: float, words: dict[int, str]) -> list[dict[str, Any]]:
    """The pieces of text: those with the largest activations, and each of the others as the example of a bin.

    Each of n others, at even quantiles, stands for an n-th of the activations; bins meet half-way between two of them.
    """
    top = [piece for piece in pieces if piece["kind"] == TOP]
    others = [piece for piece in pieces if piece["kind"] != TOP]
    peaks = [piece["activations"][piece["position"] - piece["start"]] for piece in others]
    ends = [largest, *((a + b) / 2 for a, b in zip(peaks, peaks[1:], strict=False)), 0.0]
    groups = [{**_TOP, "bin_max": _round(largest)} for _ in top]
    groups += [
        {"bin_min": _round(low), "bin_max": _round(high), "bin_contains": 1 / len(others)}
        for high, low, _ in zip(ends, ends[1:], others, strict=False)
    ]
    return [
        {
            **group,
            "tokens": _texts(piece["tokens"], words),
            "values": _rounded(piece["activations"]),
            "qualifying_token_index": piece["position"] - piece["start"],
        }
        for group, piece in zip(groups, [*top, *others], strict=True)
    ]


def _texts(tokens: Sequence[int], words: dict[int, str]) -> list[str]:
    return [words.get(token, "\ufffd") for token in tokens]


def _rounded(values: Any) -> list[float]:
    return [_round(float(value)) for value in values]


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
