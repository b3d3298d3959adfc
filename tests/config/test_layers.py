"""Layers of a sweep file: all, a range, counted from the end; each is the same sweep as the one spelt out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gsae_ray.capacity.forecast import forecast
from gsae_ray.config import plain_yaml
from gsae_ray.config.layers import depend_on_model, numbered
from gsae_ray.config.load import load_sweep
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import prepare
from gsae_ray.errors import UserError

TEXT = """\
name: test
model: {name: builtin, context_size: 32}
dataset: {name: builtin}
sites: {layers: LAYERS, points: [resid_post]}
saes:
  - {architecture: gated, widths: [32], l1_coefficient: [1], sites: {layers: FILTER}}
  - {architecture: standard, widths: [48], l1_coefficient: [1]}
training: {tokens: 2000, batch_size: 100}
evaluation: {tokens: 200}
"""
N_LAYERS = 4
"""Of the built-in model."""


def load(tmp_path: Path, layers: str, entry_filter: str = "[]") -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(TEXT.replace("LAYERS", layers).replace("FILTER", entry_filter))
    return load_sweep(path)


FORMS = [
    ("all", [0, 1, 2, 3]),
    ("[0, -1]", [0, 3]),
    ("-1", [3]),
    ("[-1, 3, -2]", [3, 2]),
    ("{from: 0, to: 3, step: 2}", [0, 2]),
    ("{from: 1, to: 3}", [1, 2, 3]),
    ("{from: 0, to: -1}", [0, 1, 2, 3]),
    ("{from: -3, to: -1, step: 2}", [1, 3]),
]


@pytest.mark.parametrize(("layers", "expected"), FORMS)
def test_layers_are_those_of_the_model(tmp_path: Path, layers: str, expected: list[int]) -> None:
    sweep = load(tmp_path, layers).of_model(N_LAYERS)
    assert sweep.sites.layers == tuple(expected)
    assert [site.name for site in sweep.used_sites] == [f"blocks.{n}.hook_resid_post" for n in expected]
    assert sweep == load(tmp_path, str(expected))


@pytest.mark.parametrize(
    ("entry_filter", "expected"),
    [
        ("all", [0, 1, 3]),
        ("-1", [3]),
        ("[0, -1]", [0, 3]),
        ("{from: 1, to: -1}", [1, 3]),  # of a range, those that the sweep has
        ("{from: 0, to: 2}", [0, 1]),
    ],
)
def test_filters_follow_the_same_forms(tmp_path: Path, entry_filter: str, expected: list[int]) -> None:
    sweep = load(tmp_path, "[0, 1, -1]", entry_filter).of_model(N_LAYERS)
    gated = [site.layer for site in sweep.used_sites if sweep.saes[0].selects(site)]
    assert gated == expected
    assert sweep == load(tmp_path, "[0, 1, 3]", str(expected))


def test_a_sweep_of_all_layers_is_the_one_that_spells_them_out(tmp_path: Path) -> None:
    """Identities, names, and what is written down."""
    given, spelt = (
        prepare(load(tmp_path, layers, wanted), tmp_path / "runs")
        for layers, wanted in (("all", "{from: 1, to: -1, step: 2}"), ("[0, 1, 2, 3]", "[1, 3]"))
    )
    assert [trial.identity for trial in given.trials] == [trial.identity for trial in spelt.trials]
    assert [trial.name for trial in given.trials] == [trial.name for trial in spelt.trials]
    assert len(given.trials) == 6
    assert given.sweep == spelt.sweep
    written = json.loads(given.sweep.model_dump_json())
    assert (written["sites"]["layers"], written["saes"][0]["sites"]["layers"]) == ([0, 1, 2, 3], [1, 3])
    cost = [forecast(load(tmp_path, layers)) for layers in ("all", "[0, 1, 2, 3]")]
    assert (cost[0].trials, cost[0].model_flops) == (cost[1].trials, cost[1].model_flops)
    assert cost[0].trials == 8


def test_a_submitted_sweep_keeps_what_depends_on_the_model(tmp_path: Path) -> None:
    """The cluster looks at the model: what is shipped there means the same."""
    for layers, _ in FORMS:
        sweep = load(tmp_path, layers, "all")
        path = tmp_path / "shipped.yaml"
        path.write_text(plain_yaml.dump(sweep.model_dump(mode="json")))
        assert load_sweep(path) == sweep
        assert yaml.safe_load(path.read_text()) == sweep.model_dump(mode="json")


@given(n=st.integers(1, 60), data=st.data())
def test_a_range_holds_both_ends_and_counts_from_either(n: int, data: Any) -> None:
    first = data.draw(st.integers(0, n - 1))
    last = data.draw(st.integers(first, n - 1))
    step = data.draw(st.integers(1, n))
    expected = tuple(range(first, last + 1, step))
    for a in (first, first - n):
        for b in (last, last - n):
            assert numbered({"from": a, "to": b, "step": step}, n, "layers") == expected
    assert numbered(tuple(layer - n for layer in expected), n, "layers") == expected
    assert depend_on_model(tuple(layer - n for layer in expected))
    assert not depend_on_model(expected)


@pytest.mark.parametrize(
    ("layers", "entry_filter", "parts"),
    [
        ("[-5]", "[]", ["sites.layers: -5 is out of range", "0 to 3", "-1 to -4"]),
        ("{from: 0, to: 31, step: 2}", "[]", ["sites.layers: 31 is out of range", "0 to 3"]),
        ("{from: 3, to: 1}", "[]", ["sites.layers: from 3 to 1", "no layer"]),
        ("[0, -1]", "[1]", ["saes.0.sites: this filter leaves none"]),
        ("[0, -1]", "[0, 1]", ["saes.0.sites.layers: 1 is not among"]),
        ("[0, -1]", "{from: 1, to: 2}", ["saes.0.sites.layers: this filter leaves none"]),
        ("[0, 1]", "-9", ["saes.0.sites.layers: -9 is out of range"]),
    ],
)
def test_a_layer_that_is_not_there_is_one_line(
    tmp_path: Path, layers: str, entry_filter: str, parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, layers, entry_filter).of_model(N_LAYERS)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value
    with pytest.raises(UserError):
        prepare(load(tmp_path, layers, entry_filter), tmp_path / "runs")


@pytest.mark.parametrize(
    "layers", ["al", "[1.0]", "[true]", "{from: 1}", "{from: 1, to: 2, by: 2}", "[[1]]", "[1e9]", "'1'", "null"]
)
def test_what_is_no_layer_is_refused_with_the_forms_that_are(tmp_path: Path, layers: str) -> None:
    with pytest.raises(UserError, match=r"sites\.layers: .*count from the end.*step: 2.* or all") as caught:
        load(tmp_path, layers)
    assert "\n" not in str(caught.value)
    for span, part in (("{from: 0, to: 4, step: 0}", "step: 0"), ("{from: 0, to: 1e300}", "to: 1e+300")):
        with pytest.raises(UserError, match=r"sites\.layers: ") as caught:
            load(tmp_path, span)
        assert part in str(caught.value)


def test_a_model_that_does_not_tell_its_layers_takes_numbers(tmp_path: Path) -> None:
    assert load(tmp_path, "[1, 2]").of_model(None) == load(tmp_path, "[1, 2]")
    with pytest.raises(UserError, match=r"sites\.layers: .*give numbers"):
        load(tmp_path, "all").of_model(None)
