"""The ratings of studies as tables: a row an item, and a row a pair of features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gsae_ray.errors import UserError
from gsae_ray.study.database import opened

CELL = ["experiment", "model", "site", "rater"]
"""What the two features of a pair share, with their number: two SAEs of one site of an experiment are compared."""
_QUERY = """
SELECT raters.name AS rater, experiment, model, site, layer, point, architecture, pair, place, label, explanation,
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
    """rater, experiment, model, site, layer, point, architecture, pair, place, label (missing: not rated), explanation,
    seconds."""

    @property
    def rated(self) -> pd.DataFrame:
        return self.items.dropna(subset="label")

    @property
    def pairs(self) -> pd.DataFrame:
        """Pairs of which both features are rated: what is in `CELL`, layer, point, pair, and `difference`."""
        sides = {
            name: self.rated[self.rated["architecture"] == name].set_index([*CELL, "pair"])
            for name in (self.better, self.base)
        }
        others = sides[self.base]["label"].rename("other")
        both = sides[self.better].join(others, how="inner", validate="one_to_one")
        difference = (both["label"] - both["other"]).astype(float)
        return both.assign(difference=difference).reset_index()[[*CELL, "layer", "point", "pair", "difference"]]


def read_ratings(paths: Sequence[Path]) -> Ratings:
    """The ratings of one study, or of several that compare the same architectures: each has raters of its own.

    Raises:
        UserError: a file is no study, two are copies of one, or the studies compare other architectures.
    """
    compared, items = {}, []
    of_token: dict[str, int] = {}
    for number, path in enumerate(paths, start=1):
        with opened(path) as database:
            for (token,) in database.execute("SELECT token FROM raters"):
                if (other := of_token.setdefault(token, number)) != number:
                    if path.samefile(paths[other - 1]):
                        raise UserError(f"STUDY: {path} is given twice; name it once")
                    raise UserError(
                        f"STUDY: {paths[other - 1]} and {path} are one study, whose answers would count twice: raters' "
                        "links are the same; name the one that was served last"
                    )
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
