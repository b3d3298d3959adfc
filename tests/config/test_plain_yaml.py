"""YAML as sweep files need it: plain scalars, nothing shared, bounds, and errors that name line and key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsae_ray.config import plain_yaml
from gsae_ray.config.load import load_sweep
from gsae_ray.errors import UserError

TEXT = """\
name: test
model: {name: builtin}
dataset: {name: builtin}
sites: {layers: [1, 2, 3], points: [resid_post]}
saes:
  - {architecture: gated, widths: [32], l1_coefficient: [1], sites: &all {layers: &three [1, 2, 3]}}
  - {architecture: standard, widths: [48], l1_coefficient: [1], sites: *all}
  - {architecture: standard, widths: [96], l1_coefficient: [1], sites: {layers: *three}}
training: {tokens: 10_000, batch_size: 100}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(TEXT)
    return path


def error_of(text: str) -> str:
    with pytest.raises(UserError) as caught:
        plain_yaml.load(text, "x.yaml")
    message = str(caught.value)
    assert message.startswith("x.yaml") and "\n" not in message and len(message) < 700
    return message


# ---- nothing is shared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "layers"),
    [
        ("saes.1.sites.layers=[2]", [(1, 2, 3), (2,), (1, 2, 3)]),
        ("saes.0.sites.layers=[2]", [(2,), (1, 2, 3), (1, 2, 3)]),
        ("saes.2.sites.layers.0=2", [(1, 2, 3), (1, 2, 3), (2, 3)]),
        ("saes.0.sites.layers.0=2", [(2, 3), (1, 2, 3), (1, 2, 3)]),
    ],
)
def test_an_override_leaves_other_entries_alone_that_share_an_anchor(
    path: Path, override: str, layers: list[tuple[int, ...]]
) -> None:
    sweep = load_sweep(path, [override])
    assert [entry.sites.layers for entry in sweep.saes if entry.sites] == layers
    assert sweep.sites.layers == (1, 2, 3)


def test_an_override_leaves_what_was_merged_alone(path: Path) -> None:
    merged = "{<<: *first, widths: [64]}"
    text = TEXT.replace("- {architecture: gated", "- &first {architecture: gated").replace(
        "{architecture: standard, widths: [48], l1_coefficient: [1], sites: *all}", merged
    )
    path.write_text(text)
    sweep = load_sweep(path, ["saes.1.sites.layers=[3]"])
    assert [entry.widths for entry in sweep.saes] == [(32,), (64,), (96,)]
    assert [entry.sites.layers for entry in sweep.saes if entry.sites] == [(1, 2, 3), (3,), (1, 2, 3)]


# ---- plain scalars --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("-3", -3),
        ("400_000", 400_000),
        ("1e-3", 1e-3),
        ("1e9", 1e9),
        ("1_0e-4", 1e-3),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("0", 0),
        ("-0.0", -0.0),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        # what YAML 1.1 reads in ways of its own is text
        ("010", "010"),
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("0b1", "0b1"),
        ("400_000:00", "400_000:00"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("1__0", "1__0"),
        ("1_", "1_"),
        ("_1", "_1"),
        ("yes", "yes"),
        ("off", "off"),
        ("2024-05-01", "2024-05-01"),
        ("=", "="),
        ("²", "²"),
        ("٣", "٣"),
        ("'10'", "10"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_plain_word_means_what_it_means_to_everybody(text: str, value: object) -> None:
    for found in (plain_yaml.load(f"x: {text}", "x.yaml")["x"], plain_yaml.load(f"[[{text or '~'}]]", "x.yaml")[0][0]):
        assert found == value
        assert type(found) is type(value)


def test_a_number_with_a_leading_zero_or_a_colon_is_refused_where_a_number_is_meant(path: Path) -> None:
    for text in ("010", "400_000:00", "0x10", "9" * 5000, "²"):
        with pytest.raises(UserError) as caught:
            load_sweep(path, [f"training.tokens={text}"])
        assert f"training.tokens: '{text[:20]}" in str(caught.value)
        assert "should be an integer" in str(caught.value)
        assert len(str(caught.value)) < 400


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cc", "Cs")))
    | st.sampled_from(
        ["1e5", "010", "yes", "1:30", "null", "~", "<<", "=", "0x1", "12e4567", "2024-01-01", "- a", "#"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, database=None)
@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    found = plain_yaml.load(plain_yaml.dump({"value": value}), "x.yaml")
    assert found == {"value": value}
    assert repr(found) == repr({"value": value})  # 1 is not 1.0 here, nor True


# ---- what is not taken ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n  b: [1, !!float x]", "x.yaml, line 2: a.b.1: the tag"),
        ("a: !!timestamp ''", "x.yaml, line 1: a: the tag"),
        ("a: ! b", "x.yaml, line 1: a: the tag"),
        ("!!set {a, b}", "x.yaml, line 1: the tag"),
        ("a: {b: 1, b: 2}", "x.yaml, line 1: a.b: key 'b' stands twice"),
        ("a: {<<: {b: 1}, <<: {b: 2}}", "x.yaml, line 1: a.<<: key '<<' stands twice"),
        ("a: {<<: 3}", "x.yaml, line 1: a.<<: << takes a mapping"),
        ("a: &x [*x]", "x.yaml, line 1: a.0: no value before it has the anchor &x"),
        ("a: *x", "x.yaml, line 1: a: no value before it"),
        ("a: 1\n--- \nb: 2", "x.yaml, line 2: a second document"),
        ("a:\n  ? {b: 1}\n  : 2", "x.yaml, line 2: a: a key that is no plain text"),
        ('a: "\\ud800"', "x.yaml, line 1: a: text with the character U+D800"),
        ('a: "b\\nc"', "x.yaml, line 1: a: text with the character U+000A"),
        ("a: |\n  b\n", "x.yaml, line 1: a: text with the character U+000A"),
        ('a: "\\UFFFFFFFF"', "x.yaml: not valid YAML"),
        ("%YAML 9" + "9" * 5000 + ".1\n---\na: 1", "x.yaml: not valid YAML"),
        ("[" * 30 + "]" * 30, "x.yaml, line 1: nested deeper than 20 levels"),
        ("- {a: !!int b}", "x.yaml, line 1: the tag"),
        ("a: " + "[" * 5000, "line 1: a" + ".0" * 19 + ": nested deeper than 20 levels"),
        ("a: " + "{b: " * 5000, "nested deeper than 20 levels"),
        ("a: [" + "1," * 30_000 + "]", "more than 20,000 values"),
        ("a" * 300_000, "x.yaml: more than 262,144 characters"),
        ("[" + "x" * 100_000, "not valid YAML"),
        ("a: *" + "x" * 100_000, "a: no value before it has the anchor"),
        ("? '" + "x" * 100_000 + "'\n: !y z", "the tag"),
    ],
)
def test_what_is_not_taken_is_one_line_with_line_and_key(text: str, expected: str) -> None:
    assert expected in error_of(text)


def test_aliases_cannot_make_a_text_endless() -> None:
    wide = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
    )
    assert "more than 20,000 values, aliases spelt out" in error_of(wide)
    deep = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [[[[[[[[[*a{i - 1}]]]]]]]]]\n" for i in range(1, 100))
    assert "nested deeper than 20 levels" in error_of(deep)


def test_what_is_no_sweep_file_is_not_read_whole() -> None:
    for device in ("/dev/zero", "/dev/urandom"):
        with pytest.raises(UserError, match=device):
            load_sweep(device)
