"""The ratings of studies as tables: a row an item, and a row a pair of features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gsae_ray.errors import UserError
from gsae_ray.study.database import opened

CELL = ["model", "site", "rater"]
"""What the two features of a pair share, with their number (a site is a layer and a point)."""
_QUERY = """
SELECT raters.name AS rater, model, site, layer, point, architecture, pair, place, label, explanation,
    (SELECT sum(seconds) FROM answers WHERE answers.item = items.id) AS seconds
FROM items JOIN raters ON raters.id = items.rater JOIN features ON features.id = items.feature
JOIN saes ON saes.id = features.sae LEFT JOIN newest ON newest.item = items.id ORDER BY items.id
"""


class Ratings(NamedTuple):
    """All items of some studies."""

    better: str
    """The architecture whose labels stand first in a difference."""
    base: str
    items: pd.DataFrame
    """rater, model, site, layer, point, architecture, pair, place, label (missing: not rated), explanation, seconds."""

    @property
    def rated(self) -> pd.DataFrame:
        return self.items.dropna(subset="label")

    @property
    def pairs(self) -> pd.DataFrame:
        """Pairs of which both features are rated: model, site, layer, point, rater, pair, and `difference`."""
        sides = {
            name: self.rated[self.rated["architecture"] == name].set_index([*CELL, "pair"])
            for name in (self.better, self.base)
        }
        both = sides[self.better].join(sides[self.base]["label"].rename("other"), how="inner")
        difference = (both["label"] - both["other"]).astype(float)
        return both.assign(difference=difference).reset_index()[[*CELL, "layer", "point", "pair", "difference"]]


def read_ratings(paths: Sequence[Path]) -> Ratings:
    """The ratings of one study, or of several that compare the same architectures: each has raters of its own.

    Raises:
        UserError: a file is no study or is there twice, or the studies compare other architectures.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("STUDY: one file is named twice, whose answers would count twice")
    compared, items = {}, []
    for number, path in enumerate(paths, start=1):
        with opened(path) as database:
            compared[path] = database.execute("SELECT better, base FROM study").fetchone()
            found = pd.read_sql_query(_QUERY, database)
        if len(paths) > 1:
            found["rater"] = f"study {number}, " + found["rater"]
        items.append(found.astype({"label": "Float64", "layer": "Int64", "seconds": "Float64"}))
    if len(set(compared.values())) > 1:
        told = "; ".join(f"{path}: {' and '.join(names)}" for path, names in compared.items())
        raise UserError(f"STUDY: these studies compare different architectures ({told}); analyse them apart")
    better, base = compared[paths[0]]
    return Ratings(better, base, pd.concat(items, ignore_index=True))
