"""`evaluation.features`: what it may be, and for which sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_texts import error_of, load_text

from gsae_ray.config.features import FeatureSettings
from gsae_ray.config.site import Site
from gsae_ray.errors import UserError

TEXT = """\
name: small
model: {name: builtin}
dataset: {name: builtin}
sites: {layers: 1, points: resid_post}
saes:
  - {architecture: gated, widths: 32, l1_coefficient: 1}
training: {tokens: 10_000, batch_size: 100}
"""
SYNTHETIC = TEXT.replace("{name: builtin}", "{name: synthetic}", 1)
SYNTHETIC = "".join(line for line in SYNTHETIC.splitlines(True) if not line.startswith(("dataset", "sites")))
FILES = TEXT.replace("model: {name: builtin}\ndataset: {name: builtin}", "activations: {path: acts}")


def refused(tmp_path: Path, text: str, given: str) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return error_of(path, f"evaluation.features={given}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("true", FeatureSettings()),
        ("false", None),
        ("null", None),
        ("{contexts: 5, window: 8}", FeatureSettings(contexts=5, window=8)),
        ("{saes: all, tokens: 1e4}", FeatureSettings(saes="all", tokens=10_000)),
    ],
)
def test_it_is_a_switch_or_a_mapping(tmp_path: Path, given: str, expected: Any) -> None:
    assert load_text(tmp_path, TEXT, f"evaluation.features={given}").evaluation.features == expected


def test_top_pieces_are_the_larger_half() -> None:
    assert [(s.top, s.quantile) for s in (FeatureSettings(contexts=n) for n in (2, 5, 10))] == [(1, 1), (3, 2), (5, 5)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{contexts: 1}", "evaluation.features.contexts"),
        ("{window: 2000}", "evaluation.features.window: 2000 should be at most 1,000 "),
        ("{context: 3}", "contexts"),
        ("{saes: best}", "evaluation.features.saes"),
        ("yes please", "evaluation.features"),
    ],
)
def test_what_is_wrong_names_its_key(tmp_path: Path, given: str, said: str) -> None:
    assert said in refused(tmp_path, TEXT, given)


@pytest.mark.parametrize("text", [SYNTHETIC, FILES], ids=["synthetic", "files"])
def test_sweeps_without_text_refuse_it(tmp_path: Path, text: str) -> None:
    load_text(tmp_path, text, "evaluation.features=false")
    line = refused(tmp_path, text, "true")
    assert "evaluation.features: " in line and "leave it out" in line and "text" in line


def test_pieces_of_an_sae_that_no_table_holds_are_refused(tmp_path: Path) -> None:
    wide = TEXT.replace("widths: 32", "widths: 131_072")
    site = {Site("blocks.1.hook_resid_post"): 128}
    load_text(tmp_path, wide, "evaluation.features={contexts: 100, window: 163}").expand(site, {})
    sweep = load_text(tmp_path, wide, "evaluation.features={contexts: 100, window: 164}")
    said = "evaluation.features: 100 pieces .contexts. of 164 tokens .window. .* 2,149,580,800 tokens, .* lower either"
    with pytest.raises(UserError, match=said):
        sweep.expand(site, {})
