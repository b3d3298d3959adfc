"""Ratings constructed to have the statistics that the paper reports of its study; the paper's own are not public.

171 pairs: of Pythia 75 (5 raters, 5 layers, 3 sites), of Gemma 96 (4 layers, 3 sites, and 8 raters in place of the
paper's 7, one of whom must have rated twice as much). How often each difference from -2 to 2 occurs at each site and
model was searched for until means, intervals and p were those of the paper; the order within them is drawn.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from gsae_ray.study.ratings import Ratings

SITES = ("mlp_out", "attn_z", "resid_post")
BOTH = np.array([[3, 4, 29, 9, 12], [3, 11, 30, 6, 7], [6, 7, 31, 11, 2]])
"""[sites, differences from -2 to 2]: how often each occurs."""
PYTHIA = np.array([[0, 4, 12, 0, 9], [0, 7, 16, 2, 0], [5, 0, 9, 11, 0]])
LAYERS = {"pythia": (4, 12, 16, 20, 28), "gemma": (6, 13, 20, 27)}
RATERS = {"pythia": 5, "gemma": 8}
LABELS = {-2: [(0, 2)], -1: [(0, 1), (1, 2)], 0: [(0, 0), (1, 1), (2, 2)], 1: [(1, 0), (2, 1)], 2: [(2, 0)]}
"""Difference -> labels of (gated, standard) that have it."""
SEED = 2376


def paper_ratings(seed: int = SEED) -> Ratings:
    """The ratings of both models."""
    random = np.random.RandomState(seed)  # its streams are frozen by numpy's compatibility policy
    rows = []
    for model, counts in (("pythia", PYTHIA), ("gemma", BOTH - PYTHIA)):
        for point, of_site in zip(SITES, counts, strict=True):
            differences = random.permutation(np.repeat([-2, -1, 0, 1, 2], of_site))
            cells = [(layer, rater) for layer in LAYERS[model] for rater in range(RATERS[model])]
            for (layer, rater), difference in zip(cells, differences, strict=True):
                choices = LABELS[int(difference)]
                labels = choices[random.randint(len(choices))]
                cell = {
                    "experiment": model,
                    "model": model,
                    "layer": layer,
                    "point": point,
                    "site": f"blocks.{layer}.{point}",
                }
                cell |= {"rater": f"{model} {rater}", "pair": 0, "place": 1, "explanation": "", "seconds": 30.0}
                rows += [
                    {**cell, "architecture": name, "label": float(label)}
                    for name, label in zip(("gated", "standard"), labels, strict=True)
                ]
    table = pd.DataFrame(rows).astype({"label": "Float64", "layer": "Int64", "seconds": "Float64"})
    return Ratings("gated", "standard", table)
