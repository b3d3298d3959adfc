"""A frontier says where the best value of a setting is the last of those that were tried."""

from __future__ import annotations

from typing import Any

import pandas as pd
from trials import SITE_1, SITE_2

from gsae_ray.results.grids import at_edges

L1 = (8.0, 4.0, 2.0)


def rows_of(
    *points: tuple[float, float], sparsity: tuple[float, ...] = (8.0, 4.0, 2.0), **columns: Any
) -> pd.DataFrame:
    rows = pd.DataFrame(points, columns=["l0", "loss_recovered"]).assign(sparsity=sparsity[: len(points)])
    kind = {"site": SITE_1, "architecture": "gated", "variant": "", "tokens": 1024, "lr": 1e-3, "d_sae": 512}
    return rows.assign(**{**kind, "l1_units": "sum", "origin": "own", **columns})


LOW, MIDDLE, HIGH = [(10, 0.90), (20, 0.95), (40, 0.97)], [(9, 0.91), (18, 0.96), (36, 0.98)], [(12, 0.8), (40, 0.9)]


def joined(*tables: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)


def test_a_learning_rate_within_its_grid_is_no_matter_and_one_at_an_end_is_named() -> None:
    rows = joined(rows_of(*LOW, lr=3e-4), rows_of(*MIDDLE, lr=1e-3), rows_of(*HIGH, lr=3e-3))
    assert at_edges(rows) == []
    (note,) = at_edges(rows[rows["lr"] > 3e-4])
    assert note == (
        f"lr: 0.001, the smallest of 2 tried, is the best for gated SAEs at {SITE_1}; a smaller one may be better"
    )
    (note,) = at_edges(rows[rows["lr"] < 3e-3])
    assert "lr: 0.001, the largest of 2 tried" in note and note.endswith("a larger one may be better")


def test_each_kind_of_sae_is_looked_at_by_itself_and_sites_share_a_sentence() -> None:
    one = joined(rows_of(*LOW), rows_of(*MIDDLE, d_sae=1024))
    rows = joined(one, one.assign(site=SITE_2), rows_of(*HIGH, architecture="standard", d_sae=4096))
    (note,) = at_edges(rows)
    assert note.startswith("width: 1024, the largest of 2 tried, is the best for gated SAEs")
    assert f"{SITE_1}, {SITE_2};" in note


def test_of_the_coefficient_the_knee_counts() -> None:
    """The ends of a single curve are never its knee: any λ is right for some L0."""
    assert at_edges(rows_of(*LOW)) == []
    wider = rows_of((14, 0.95), (20, 0.955), sparsity=(4.0, 2.0), d_sae=1024)
    notes = at_edges(joined(rows_of(*LOW[::2], sparsity=(8.0, 2.0)), wider))
    assert [note for note in notes if note.startswith("sparsity (λ, k or target L0): 4, the largest of 2 tried")]
    mixed = joined(rows_of(*LOW[::2], sparsity=(8.0, 2.0)), wider.assign(l1_units="paper"))
    assert not [note for note in at_edges(mixed) if note.startswith("sparsity")]


def test_two_values_that_are_as_good_and_references_say_nothing() -> None:
    assert at_edges(joined(rows_of(*LOW, lr=1e-3), rows_of(*LOW, lr=3e-3))) == []
    theirs = rows_of(*MIDDLE, lr=3e-4, origin="theirs")
    assert at_edges(joined(rows_of(*LOW), theirs)) == [] and at_edges(theirs) == [] and at_edges(theirs[:0]) == []
