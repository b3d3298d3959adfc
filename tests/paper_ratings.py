"""Ratings constructed to have the statistics that the paper reports of its study; the paper's own are not public.

171 pairs: of Pythia 75 (5 raters, 5 layers, 3 sites), of Gemma 96 (4 layers, 3 sites, and 8 raters in place of the
paper's 7, one of whom must have rated twice as much). How often each difference from -2 to 2 occurs at each site and
model was searched for until means, intervals and p were those of the paper; then, by simulated annealing, which rater
gave it at which layer, and by which two labels, until p between layers, raters and sites were. One p was not found:
Kruskal-Wallis of raters' labels is .05, the paper's .01, which hardly goes with Friedman's .13 and .03 within its
models where all raters of a model rate as often as each other.
"""

from __future__ import annotations

import pandas as pd

from gsae_ray.study.ratings import Ratings

LAYERS = {"pythia": (4, 12, 16, 20, 28), "gemma": (6, 13, 20, 27)}
LABELS = {
    ("pythia", "mlp_out"): (
        "01 01 22 11 00",
        "11 20 20 20 20",
        "11 11 20 20 00",
        "20 20 22 01 20",
        "12 11 00 11 00",
    ),
    ("pythia", "attn_z"): (
        "12 12 00 12 00",
        "01 12 21 22 22",
        "11 22 11 01 11",
        "22 11 11 01 00",
        "11 11 21 11 11",
    ),
    ("pythia", "resid_post"): (
        "00 11 21 02 11",
        "11 02 21 21 00",
        "10 10 10 22 21",
        "02 02 00 10 10",
        "21 10 02 22 11",
    ),
    ("gemma", "mlp_out"): (
        "11 21 10 20 22 00 10 10",
        "10 00 22 11 02 20 22 02",
        "22 22 20 11 22 21 22 11",
        "02 21 21 00 10 00 00 00",
    ),
    ("gemma", "attn_z"): (
        "00 10 22 01 22 02 11 00",
        "20 02 01 00 11 21 20 11",
        "22 00 21 20 20 11 11 01",
        "20 00 22 20 20 10 02 01",
    ),
    ("gemma", "resid_post"): (
        "01 00 11 01 11 11 11 00",
        "11 00 00 01 22 01 22 22",
        "12 11 22 11 02 12 11 22",
        "12 11 00 00 20 00 20 22",
    ),
}
"""Of each layer each rater's pair: the label of the gated SAE's feature, then of the standard one's."""


def paper_ratings() -> Ratings:
    """The ratings of both models."""
    rows = []
    for (model, point), layers in LABELS.items():
        for layer, pairs in zip(LAYERS[model], layers, strict=True):
            for rater, labels in enumerate(pairs.split()):
                cell = {"experiment": model, "model": model, "layer": layer, "point": point}
                cell |= {"site": f"blocks.{layer}.{point}", "rater": f"{model} {rater}", "pair": 0, "place": 1}
                rows += [
                    {**cell, "architecture": name, "label": int(label), "explanation": "", "seconds": 30.0}
                    for name, label in zip(("gated", "standard"), labels, strict=True)
                ]
    table = pd.DataFrame(rows).astype({"label": "Float64", "layer": "Int64", "seconds": "Float64"})
    return Ratings("gated", "standard", table)
