"""`compare` on tables worked out by hand: straight lines in log L0, of which the ratios have closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from trials import SITE_1, SITE_2
from typed_rows import OFFSET, SLOPE, joined, typed, value

import gsae_ray
from gsae_ray.errors import UserError
from gsae_ray.results import over_seeds
from gsae_ray.results.curves import above_chord, hypervolume, l0_ratio, quality_gap


def test_straight_lines_give_the_ratios_worked_out_by_hand() -> None:
    found = gsae_ray.compare(joined(typed("gated", 0.5, gamma=1.0), typed("standard", 1.0, gamma=[0.7, 0.8, 0.9, 0.9])))
    assert value(found, "l0_ratio_at_loss_recovered")["value"] == pytest.approx(0.5)
    assert value(found, "l0_ratio_at_fvu")["value"] == pytest.approx(0.5)
    assert value(found, "loss_recovered_gap_at_l0")["value"] == pytest.approx(SLOPE * math.log(2))
    assert value(found, "median_gamma")["value"] == 1
    assert value(found, "median_gamma", "standard")["value"] == pytest.approx(0.85)
    assert value(found, "median_gamma_difference")["value"] == pytest.approx(0.15)
    # Steps of ln 2: from the worst corner (64, quality of 8) the standard SAEs reach 2 + 1 + 0 steps, gated 3 + 2 + 1
    # from L0 8, 16, 32, and their first, of the same quality as the corner, adds nothing.
    step = SLOPE * math.log(2) * math.log(2)
    assert value(found, "hypervolume", "standard")["value"] == pytest.approx(3 * step)
    assert value(found, "hypervolume")["value"] == pytest.approx(6 * step)
    assert value(found, "hypervolume_difference")["value"] == pytest.approx(3 * step)
    assert found.sentences == [
        "gated needs 0.50× the active features of standard at equal loss recovered; without an interval"
    ]
    row = value(found, "l0_ratio_at_loss_recovered")
    assert (row["saes"], row["base_saes"], row["contexts"], row["seeds"], row["covers"]) == (4, 4, 0, 0, "")
    assert math.isnan(row["low"]) and math.isnan(row["high"])
    assert f"hypervolume: up to L0 64 and loss recovered {OFFSET + SLOPE * math.log(8):.4g}" in found.notes
    swapped = gsae_ray.compare(joined(typed("gated", 0.5), typed("standard", 1.0)), base="gated")
    assert value(swapped, "l0_ratio_at_fvu", "standard")["value"] == pytest.approx(2)


def test_each_site_and_each_kind_is_compared_with_the_base() -> None:
    rows = joined(
        typed("gated", 0.5, site=SITE_1),
        typed("topk", 0.25, site=SITE_1),
        typed("standard", 1.0, site=SITE_1),
        typed("gated", 0.8, site=SITE_2),
        typed("standard", 1.0, site=SITE_2),
        typed("gated", 0.8, site="blocks.7"),
    )
    found = gsae_ray.compare(rows)
    ratios = found.table[found.table["measure"] == "l0_ratio_at_loss_recovered"]
    assert ratios[["site", "group"]].to_numpy().tolist() == [[SITE_1, "gated"], [SITE_1, "topk"], [SITE_2, "gated"]]
    assert ratios["value"].tolist() == pytest.approx([0.5, 0.25, 0.8])
    assert any(note == "nothing to compare at blocks.7: all SAEs there are gated" for note in found.notes)
    assert f"topk needs 0.25× the active features of standard at equal loss recovered, {SITE_1}" in repr(found)
    assert "<table" in found._repr_html_() and SITE_2 in found._repr_html_()


def test_variants_are_kinds_of_their_own_and_any_column_may_be_compared() -> None:
    rows = joined(
        typed("gated", 0.5, variant=""), typed("gated", 0.6, variant="tied=false"), typed("standard", 1, variant="")
    )
    found = gsae_ray.compare(rows)
    assert value(found, "l0_ratio_at_fvu", "gated tied=false")["value"] == pytest.approx(0.6)
    widths = joined(typed("gated", 0.5, d_sae=1024), typed("gated", 1.0, d_sae=512))
    assert value(gsae_ray.compare(widths, by="d_sae", base="512"), "l0_ratio_at_fvu", "1024")["value"] == (
        pytest.approx(0.5)
    )


def test_widths_are_compared_within_each_architecture_and_variant() -> None:
    rows = joined(
        typed("gated", 0.5, d_sae=1024, variant=""),
        typed("gated", 1.0, d_sae=512, variant=""),
        typed("standard", 3.0, d_sae=1024, variant=""),
        typed("standard", 4.0, d_sae=512, variant=""),
        typed("gated", 0.1, d_sae=1024, variant="tied=false"),
    )
    found = gsae_ray.compare(rows, by="d_sae", base="512")
    for kind, ratio in (("gated", 0.5), ("standard", 0.75)):
        row = value(found, "l0_ratio_at_fvu", "1024", kind=kind)
        assert row["value"] == pytest.approx(ratio) and (row["saes"], row["base_saes"]) == (4, 4)
        assert f"1024 needs {ratio:.2f}× the active features of 512 at equal loss recovered, {kind}; " in repr(found)
    assert "nothing to compare of gated tied=false: all SAEs there are 1024" in found.notes
    alone = gsae_ray.compare(rows.assign(d_sae=["a"] * 4 + ["b"] * 16), by="variant", base="")
    assert value(alone, "l0_ratio_at_fvu", "tied=false", kind="gated")["saes"] == 4


def test_numbers_are_compared_as_numbers() -> None:
    rows = joined(*(typed("gated", 0.5 + number / 20, sparsity=float(number)) for number in range(1, 13)))
    for base in (8, 8.0, "8", "8.0"):
        found = gsae_ray.compare(rows, by="sparsity", base=base)
        assert found.base == "8" and value(found, "l0_ratio_at_fvu", "10")["value"] == pytest.approx(1.0 / 0.9)
    assert list(found.table["group"].unique()) == [*map(str, [*range(1, 8), *range(9, 13)]), "8"]
    listed = r"one of: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, … \(12 in all\)$"
    with pytest.raises(UserError, match=f"^base: say with which sparsity .*; {listed}"):
        gsae_ray.compare(rows, by="sparsity")
    with pytest.raises(UserError, match=f"^base: no sparsity '13' among these rows; {listed}"):
        gsae_ray.compare(rows, by="sparsity", base="13")


def test_without_a_language_model_the_curves_are_of_explained_variance() -> None:
    rows = joined(typed("gated", 0.5), typed("standard", 1.0)).assign(loss_recovered=math.nan)
    found = gsae_ray.compare(rows)
    assert set(found.table["measure"]) >= {"l0_ratio_at_fvu", "explained_variance_gap_at_l0", "hypervolume"}
    assert "l0_ratio_at_loss_recovered" not in set(found.table["measure"])
    assert value(found, "explained_variance_gap_at_l0")["value"] == pytest.approx(0.1 * math.log(2))
    assert found.sentences == ["gated needs 0.50× the active features of standard at equal FVU; without an interval"]


TWO = joined(typed("gated", 0.5), typed("standard", 1.0))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (typed("gated", 0.5), {}, r"^compare: all rows are gated; .*add SAEs of another"),
        (TWO, {"by": "architecure"}, r"^by: .*did you mean 'architecture'"),
        (TWO, {"base": "gatde"}, r"^base: no architecture 'gatde' .*did you mean 'gated'"),
        (TWO.rename(columns={"architecture": "kind"}), {"by": "kind"}, "^base: say with which kind .*gated, standard"),
        (TWO.drop(columns="l0"), {}, r"^compare: these rows have no column 'l0'"),
        (TWO.drop(columns=["loss_recovered", "fvu"]), {}, r"^compare: these rows have no column 'loss_recovered'"),
        (TWO[:5], {}, r"^compare: gated and standard share no range of L0 or loss recovered: gated has L0 4 to 32"),
        (TWO[:0], {}, r"^compare: there is no SAE"),
        (TWO.astype({"l0": str}), {}, "^l0: '4.0' is no number; give numbers"),
        (TWO.astype({"loss_recovered": str}), {}, "^loss_recovered: '0.89.*' is no number"),
        (TWO.to_dict("records"), {}, r"^rows: a pandas.DataFrame is meant, not \[\{"),
        ("quickstart", {}, r"^rows: a pandas.DataFrame is meant, not 'quickstart'; "),
        (
            TWO.assign(loss_recovered=100 * TWO["loss_recovered"]),
            {},
            r"^loss_recovered: 93.\d+ is above 1: a fraction is meant, 0.93\d+$",
        ),
        (TWO.assign(tokens=[1024] * 4 + [2048] * 4), {}, r"^tokens: .*1,024 and 2,048 tokens"),
        (TWO.assign(recipe=["paper/modern"] * 4 + ["paper/paper"] * 4), {}, r"^recipe: .*2 recipes"),
        (
            TWO.assign(d_sae=[512] * 4 + [768] * 4),
            {"by": "d_sae", "base": "768"},
            "^compare: these differ in architecture, too: 512: gated; 768: standard; ",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line_with_the_remedy(rows: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        gsae_ray.compare(rows, **options)
    assert "\n" not in str(found.value)


def test_a_column_of_numbers_among_which_some_are_missing_may_be_of_objects() -> None:
    rows = joined(TWO, TWO[:1]).astype({"l0": object, "fvu": object})
    rows.loc[8, ["l0", "fvu"]] = None
    assert value(gsae_ray.compare(rows), "l0_ratio_at_fvu")["value"] == pytest.approx(0.5)


def test_recipes_and_tokens_may_be_mixed_where_that_is_said_or_is_what_is_compared() -> None:
    tokens = TWO.assign(tokens=[1024] * 4 + [2048] * 4)
    assert value(gsae_ray.compare(tokens, mixed_tokens=True), "l0_ratio_at_fvu")["value"] == pytest.approx(0.5)
    recipes = TWO.assign(recipe=["paper/modern"] * 4 + ["paper/paper"] * 4)
    assert value(gsae_ray.compare(recipes, mixed_recipes=True), "l0_ratio_at_fvu")["value"] == pytest.approx(0.5)
    by = gsae_ray.compare(recipes.assign(architecture="gated"), by="recipe", base="paper/paper")
    assert value(by, "l0_ratio_at_fvu", "paper/modern")["value"] == pytest.approx(0.5)
    own = gsae_ray.compare(recipes.assign(recipe=["unit_norm/modern"] * 4 + ["paper/modern"] * 4))
    assert value(own, "l0_ratio_at_fvu")["value"] == pytest.approx(0.5), "each with its own objective"


def test_references_take_part_only_where_origins_are_compared() -> None:
    rows = joined(TWO.assign(origin="own"), typed("gated", 0.25, origin="theirs"))
    found = gsae_ray.compare(rows)
    assert value(found, "l0_ratio_at_fvu")["value"] == pytest.approx(0.5)
    assert any(note.startswith("references are left out: 4 SAEs") for note in found.notes)
    theirs = gsae_ray.compare(rows, by="origin")
    assert value(theirs, "l0_ratio_at_fvu", "theirs")["value"] == pytest.approx(0.5), "of the better own SAEs"
    assert "these differ in architecture, too: own: gated, standard; theirs: gated" in theirs.notes


def test_seeds_of_one_setting_are_one_point_with_a_spread() -> None:
    one = typed("gated", 0.5, sparsity=[1.0, 2.0, 4.0, 8.0], seed=0)
    rows = joined(one.assign(l0=one["l0"] * 0.8), one.assign(l0=one["l0"] * 1.2, seed=1))
    table = over_seeds(rows)
    assert table["l0"].tolist() == pytest.approx(one["l0"].tolist()) and table["seeds"].tolist() == [2] * 4
    assert table["l0_spread"].tolist() == pytest.approx((one["l0"] * 0.4 / math.sqrt(2)).tolist())
    assert over_seeds(one)["l0_spread"].isna().all() and over_seeds(one)["seeds"].tolist() == [1] * 4
    assert len(over_seeds(rows.drop(columns="sparsity"))) == 8, "what set the sparsity is not known"
    again = over_seeds(joined(one, one))
    assert again["seeds"].tolist() == [1] * 8, "nothing tells these apart, so they are no seeds"
    found = gsae_ray.compare(joined(rows, typed("standard", 1.0, sparsity=[1.0, 2.0, 4.0, 8.0], seed=0)))
    row = value(found, "l0_ratio_at_loss_recovered")
    assert row["value"] == pytest.approx(0.5) and (row["saes"], row["base_saes"], row["seeds"]) == (8, 4, 1)


def test_a_kind_without_any_finite_quality_has_neither_an_area_nor_a_range() -> None:
    rows = joined(TWO, typed("topk", 0.5).assign(loss_recovered=math.nan, fvu=math.nan))
    rows.loc[0, "loss_recovered"] = -0.5  # an area that begins below 0 has room for a point at 0
    found = gsae_ray.compare(rows)
    assert math.isnan(value(found, "hypervolume", "topk")["value"])
    assert math.isnan(value(found, "hypervolume_difference", "topk")["value"])
    assert "topk has no finite loss recovered, so it is compared with nothing" in found.notes
    assert value(found, "l0_ratio_at_fvu")["value"] == pytest.approx(0.5)


def test_what_a_curve_leaves_out_is_a_note() -> None:
    rows = joined(TWO.assign(site=SITE_1), typed("gated", 0.5, site=SITE_1)[:1].assign(loss_recovered=math.nan))
    notes = gsae_ray.compare(rows).notes
    assert (
        f"one SAE of gated at {SITE_1}: no finite loss recovered; no curve has their settings, `saes` counts them"
        in notes
    )
    assert not [note for note in gsae_ray.compare(rows[:8]).notes if "curve" in note]


def test_seeds_that_cannot_be_told_from_settings_are_a_note() -> None:
    rows = TWO.assign(seed=[0, 1] * 4)
    told = "seed: there is no column sparsity, so each row is a setting of its own, and seeds are not averaged"
    assert told in gsae_ray.compare(rows).notes
    for known in (rows.assign(sparsity=1.0), rows.assign(seed=0)):
        assert told not in gsae_ray.compare(known).notes


def test_a_column_of_ones_own_does_not_tell_seeds_apart() -> None:
    rows = joined(*(typed("gated", 0.5, sparsity=[1.0, 2.0, 4.0, 8.0], seed=seed, lr=1e-3) for seed in (0, 1)))
    rows["my_score"], rows["my_note"] = np.arange(8.0), [f"note {n}" for n in range(8)]
    table = over_seeds(rows.assign(my_name="a"))
    assert table["seeds"].tolist() == [2] * 4
    assert table["my_score"].tolist() == [2.0, 3.0, 4.0, 5.0] and (table["my_score_spread"] > 2).all()
    assert "my_note" not in table and table["my_name"].tolist() == ["a"] * 4
    assert over_seeds(rows.assign(lr=np.arange(8.0)))["seeds"].tolist() == [1] * 8


def test_a_site_that_cannot_be_compared_is_a_note_and_not_the_end() -> None:
    unknown = TWO.assign(site=SITE_2, loss_recovered=math.nan, fvu=math.nan)
    nowhere = typed("gated", 0.5, site=None)
    found = gsae_ray.compare(joined(TWO.assign(site=SITE_1), unknown, nowhere))
    assert len(found.sentences) == 1 and SITE_1 in found.sentences[0]
    assert f"nothing to compare at {SITE_2}: no row there has a finite loss_recovered or fvu" in found.notes
    assert "4 rows are left out: no site, no architecture, or no L0 above 0" in found.notes
    with pytest.raises(
        UserError, match=r"^compare: no site has SAEs of standard and .*a finite loss_recovered or fvu$"
    ):
        gsae_ray.compare(unknown)


# ---- with sums of each context --------------------------------------------------------------------------------------


def test_a_curve_without_points_has_no_area_and_compares_with_nothing() -> None:
    nothing, some = (np.empty(0), np.empty(0)), (np.array([1.0, 2.0]), np.array([0.1, 0.2]))
    assert math.isnan(hypervolume(*nothing, (4.0, 0.0)))
    for pair in ((nothing, some), (some, nothing), (nothing, nothing)):
        assert math.isnan(l0_ratio(*pair)) and math.isnan(quality_gap(*pair))


def test_the_gap_and_the_area_of_curves_that_do_not_meet() -> None:
    low, high = (np.array([1.0, 2.0]), np.array([0.1, 0.2])), (np.array([3.0, 4.0]), np.array([0.3, 0.4]))
    assert math.isnan(quality_gap(low, high))
    assert hypervolume(*high, (2.0, 0.0)) == 0 and hypervolume(*low, (4.0, 0.2)) == 0
    assert hypervolume(np.array([1.0]), np.array([0.5]), (math.e, 0.25)) == pytest.approx(0.25)
    beaten = np.array([1.0, 2.0]), np.array([0.5, 0.4])
    assert hypervolume(*beaten, (math.e, 0.25)) == pytest.approx(0.25), "a beaten point adds nothing"


def test_the_height_above_the_chord_is_that_of_the_scaled_curve() -> None:
    l0, quality = np.array([1.0, 10.0, 100.0, 50.0]), np.array([0.0, 0.9, 1.0, 0.1])
    height = above_chord(l0, quality)
    assert height[:3].tolist() == pytest.approx([0, 0.4, 0]) and math.isnan(height[3]), "the last is beaten"
    assert np.isnan(above_chord(l0[:1], quality[:1])).all()
