"""A study as it is drawn: in pairs, at random, from features that fire; and what is refused."""

from __future__ import annotations

import dataclasses
import sqlite3
import stat
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from studies import GATED, STANDARD, at, couple_at, make_study, tables, tables_of

from gsae_ray.errors import UserError
from gsae_ray.feature_tables import FeatureTables
from gsae_ray.study.create import Design, create, draw
from gsae_ray.study.subjects import Couple, Subject, couples, remarks
from gsae_ray.study.texts import Texts, with_enough_texts

COUPLES = [couple_at(1), couple_at(2)]


def with_about(found: FeatureTables, **changed: Any) -> FeatureTables:
    about: Any = {**found.about, **changed}
    return dataclasses.replace(found, about=about)


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
        drawn = draw(GATED, np.arange(5, 60), 60, Design(pairs=20, raters=2, seed=seed))
        counts[drawn.ravel()] += 1
    assert (counts[:5] == 0).all()
    assert abs(counts[5:] - 100 * 40 / 55).max() < 4.5 * 4.45


def test_texts_are_of_different_places_half_of_them_the_strongest() -> None:
    found = tables(0)
    shown = Texts(found).of(7, 6)
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


def test_saes_without_tables_are_not_compared_and_what_that_costs_is_said() -> None:
    """Tables are by default those of the frontier, which standard SAEs are seldom on."""
    bare = dataclasses.replace(STANDARD, trial="bare", has_tables=False)
    far = dataclasses.replace(STANDARD, trial="far", l0=31.0)
    half = [at(GATED, 2), dataclasses.replace(at(STANDARD, 2), has_tables=False)]
    none = [dataclasses.replace(at(subject, 3), has_tables=False) for subject in (GATED, STANDARD)]
    subjects = [GATED, bare, far, *half, *none, at(GATED, 4), couple_at(5).better, couple_at(5).base]
    chosen = couples(subjects, ("gated", "standard"), "l0")
    assert chosen == [(GATED, far), couple_at(5)]
    nearer, apart, one_kind, no_kind, alone = remarks(chosen, subjects, ("gated", "standard"), "l0")
    assert nearer.startswith("blocks.1.hook_resid_post of small: gated-secret and bare (L0 20 and 21,")
    assert "evaluation.features: {saes: all} in the sweep file" in nearer
    assert apart.startswith("blocks.1.hook_resid_post of small: the two are far apart (L0 20 and 31,")
    assert one_kind.startswith("blocks.2.hook_resid_post of small is left out: only gated SAEs have tables")
    assert no_kind.startswith("blocks.3.hook_resid_post of small is left out: no SAEs have tables of features")
    assert alone.startswith("blocks.4.hook_resid_post of small is left out: no SAEs of both gated and standard")


def test_saes_that_are_near_enough_are_not_remarked_on() -> None:
    assert list(remarks([couple_at(1)], couple_at(1), ("gated", "standard"), "l0")) == []
    assert list(remarks([couple_at(1)], couple_at(1), ("gated", "standard"), "loss_recovered")) == []
    far = Couple(GATED, dataclasses.replace(STANDARD, loss_recovered=0.9, l0=20.0))
    assert list(remarks([far], far, ("gated", "standard"), "l0")) == []
    (remark,) = remarks([far], far, ("gated", "standard"), "loss_recovered")
    assert "far apart (L0 20 and 20, loss recovered 0.9500 and 0.9000)" in remark


@pytest.mark.parametrize(
    ("subjects", "architectures", "expected"),
    [
        ([GATED], ("gated", "standard"), "--architectures: no site has SAEs of both gated and standard"),
        ([GATED, at(STANDARD, 2)], ("gated", "standard"), "evaluation.features: {saes: all} in the sweep file"),
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


@pytest.mark.parametrize("changed", [{"heldout": "2" * 64}, {"rows": 7}])
def test_features_of_different_text_are_not_compared(tmp_path: Path, changed: dict[str, Any]) -> None:
    def of_other_text(subject: Subject) -> FeatureTables:
        return with_about(tables_of(subject), **(changed if subject.architecture == "gated" else {}))

    expected = (
        r"gated-secret and standard-secret at blocks.1.hook_resid_post of small come of different text; .*saes: all"
    )
    with pytest.raises(UserError, match=expected):
        create(tmp_path / "study.db", COUPLES, of_other_text, Design(1, 1, 0))


@pytest.mark.parametrize("other", [("standard", 1), ("gated", 2)])
@pytest.mark.parametrize("asked", [{"window": 32}, {"contexts": 20}, {"tokens": 7}, None])
def test_tables_that_were_not_made_alike_are_refused_since_raters_could_tell_them_apart(
    tmp_path: Path, other: tuple[str, int], asked: dict[str, int] | None
) -> None:
    """Of one couple, whose texts would tell the architecture, and of two, whose texts would tell the site."""
    alike: dict[str, int | None] = {"contexts": 10, "window": 16, "tokens": None}

    def made_otherwise(subject: Subject) -> FeatureTables:
        found = tables_of(subject)
        if (subject.architecture, subject.layer) != other:
            return found
        if asked is None:  # as tables of before are
            about: Any = {name: value for name, value in found.about.items() if name != "asked"}
            return dataclasses.replace(found, about=about)
        return with_about(found, asked=alike | asked)

    with pytest.raises(UserError, match="evaluation.features: tables .* were not made alike") as refused:
        create(tmp_path / "study.db", COUPLES, made_otherwise, Design(1, 1, 0))
    told = str(refused.value)
    assert f"at blocks.{other[1]}.hook_resid_post of small" in told and "gsae-ray run SWEEP" in told
    assert "contexts: 10, window: 16, tokens: all" in told and "\n" not in told
    for name, value in (asked or {}).items():
        assert f"{name}: {value}" in told
    assert list(tmp_path.iterdir()) == []


def test_tables_of_one_sae_are_in_memory_at_a_time(tmp_path: Path) -> None:
    kept: list[weakref.ref[FeatureTables]] = []

    def once(subject: Subject) -> FeatureTables:
        assert [there() for there in kept] == [None] * len(kept)
        found = dataclasses.replace(tables_of(subject))
        kept.append(weakref.ref(found))
        return found

    create(tmp_path / "study.db", COUPLES, once, Design(2, 2, 0))
    assert len(kept) == 4
