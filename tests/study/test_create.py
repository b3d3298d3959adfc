"""A study as it is drawn: in pairs, at random, from features that fire; and what is refused."""

from __future__ import annotations

import dataclasses
import sqlite3
import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from studies import GATED, STANDARD, at, couple_at, make_study, tables, tables_of

from gsae_ray.errors import UserError
from gsae_ray.feature_tables import FeatureTables
from gsae_ray.study.create import Design, create, draw
from gsae_ray.study.subjects import Subject, couples
from gsae_ray.study.texts import texts_of, with_enough_texts

COUPLES = [couple_at(1), couple_at(2)]


def rows(path: Path, query: str) -> list[tuple[int, ...]]:
    with sqlite3.connect(path) as database:
        return database.execute(query).fetchall()


DRAWN = (
    "SELECT rater, place, sae, features.feature, pair FROM items JOIN features ON features.id = items.feature "
    "ORDER BY rater, place"
)


def test_each_rater_gets_each_pair_once_and_no_feature_is_rated_twice(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    made = make_study(path, COUPLES, pairs=3, raters=4)
    assert made.items == 12 and len(set(made.tokens.values())) == 4
    items = rows(path, DRAWN)
    assert len({(sae, feature) for _, _, sae, feature, _ in items}) == len(items) == 48
    assert all(feature >= 5 for _, _, _, feature, _ in items), "the first five never fire"
    for rater in range(1, 5):
        own = [item for item in items if item[0] == rater]
        assert sorted((sae, pair) for _, _, sae, _, pair in own) == [(s, p) for s in range(1, 5) for p in range(3)]
        assert [place for _, place, *_ in own] == list(range(1, 13))
    orders = {tuple(item[2:] for item in items if item[0] == rater) for rater in range(1, 5)}
    assert len(orders) == 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "raters' tokens are in it"
    assert [file.name for file in tmp_path.iterdir()] == ["study.db"]


def test_a_seed_draws_the_same_features_in_the_same_order_whatever_other_sites_there_are(tmp_path: Path) -> None:
    make_study(tmp_path / "a.db", COUPLES)
    make_study(tmp_path / "b.db", COUPLES)
    make_study(tmp_path / "other_seed.db", COUPLES, seed=1)
    make_study(tmp_path / "fewer.db", COUPLES[:1])
    assert rows(tmp_path / "a.db", DRAWN) == rows(tmp_path / "b.db", DRAWN) != rows(tmp_path / "other_seed.db", DRAWN)
    features = "SELECT feature FROM features WHERE sae < 3 ORDER BY id"
    assert rows(tmp_path / "a.db", features) == rows(tmp_path / "fewer.db", features)


def test_features_are_drawn_uniformly() -> None:
    """Of 55 features that fire 40 are drawn for each of 100 seeds: each 72.7 times, with a deviation of 4.45."""
    counts = np.zeros(60)
    for seed in range(100):
        drawn = draw(GATED, tables(0), Design(pairs=20, raters=2, seed=seed))
        counts[np.ravel(drawn.features)] += 1
    assert (counts[:5] == 0).all()
    assert abs(counts[5:] - 100 * 40 / 55).max() < 4.5 * 4.45


def test_texts_are_of_different_places_half_of_them_the_strongest() -> None:
    found = tables(0)
    shown = texts_of(found, 7, 6, found.texts())
    peaks = [max(text["activations"]) for text in shown]
    assert peaks == sorted(peaks, reverse=True)
    own = [row for row in found.contexts.to_pylist() if row["feature"] == 7]
    top = [row["activations"] for row in own if row["kind"] == "top"][:3]
    given = [text["activations"] for text in shown]
    assert all(activations in given for activations in top)
    assert sum(row["activations"] in given for row in own if row["kind"] == "quantile") == 3
    assert all(len(text["tokens"]) == len(text["activations"]) == 16 for text in shown)


def test_a_feature_whose_texts_are_one_place_has_not_enough() -> None:
    found = tables(0)
    column = found.contexts.schema.get_field_index("context")
    place = pa.array([3] * found.contexts.num_rows, pa.int32())
    once = found.contexts.set_column(column, found.contexts.schema.field(column), place)
    assert len(with_enough_texts(found, 10)) == 55
    assert len(with_enough_texts(dataclasses.replace(found, contexts=once), 2)) == 0


def test_of_several_saes_of_a_site_the_nearest_two_are_compared() -> None:
    far = dataclasses.replace(GATED, trial="far", l0=5.0, loss_recovered=0.96)
    near = dataclasses.replace(STANDARD, trial="near", l0=40.0, loss_recovered=0.961)
    elsewhere = at(GATED, 3)
    subjects = [far, GATED, near, STANDARD, elsewhere]
    assert couples(subjects, ("gated", "standard"), "l0") == [(GATED, STANDARD)]
    assert couples(subjects, ("standard", "gated"), "loss_recovered") == [(STANDARD, GATED)]
    assert couples([far, GATED, near], ("gated", "standard"), "loss_recovered") == [(far, near)]


@pytest.mark.parametrize(
    ("subjects", "architectures", "expected"),
    [
        ([GATED], ("gated", "standard"), "--architectures: no site has SAEs of both gated and standard"),
        ([GATED, at(STANDARD, 2)], ("gated", "standard"), "gsae-ray features EXPERIMENT"),
        ([GATED, dataclasses.replace(STANDARD, tokens=7)], ("gated", "standard"), "trained alike"),
        ([GATED, STANDARD], ("gated", "gated"), "--architectures: both are 'gated'"),
    ],
)
def test_one_architecture_makes_no_study(
    subjects: list[Subject], architectures: tuple[str, str], expected: str
) -> None:
    with pytest.raises(UserError, match="--architectures") as refused:
        couples(subjects, architectures, "l0")
    assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_fewer_features_than_asked_for_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--pairs: 4 raters with 14 pairs each take 56 .* has 55 that fire"):
        make_study(tmp_path / "study.db", COUPLES, pairs=14, raters=4)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_text("answers")
    with pytest.raises(UserError, match=r"--out: .*study.db is there already"):
        make_study(path, COUPLES)
    assert path.read_text() == "answers"
    with pytest.raises(UserError, match="--out: there is no folder"):
        make_study(tmp_path / "missing" / "study.db", COUPLES)


def test_features_of_different_text_are_not_compared(tmp_path: Path) -> None:
    def of_other_text(subject: Subject) -> FeatureTables:
        found = tables_of(subject)
        about = found.about.copy()
        about["heldout"] = subject.architecture
        return dataclasses.replace(found, about=about)

    with pytest.raises(UserError, match="different text.*gsae-ray features small"):
        create(tmp_path / "study.db", COUPLES, of_other_text, Design(1, 1, 0))
