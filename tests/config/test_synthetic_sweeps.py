"""A sweep file of synthetic activations: what may be left out, what is refused, and in which words."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from sweep_texts import error_of, load_text

from gsae_ray.config.sweep import Sweep
from gsae_ray.config.synthetic import SITE, SyntheticSettings
from gsae_ray.errors import UserError

TEXT = """\
name: synthetic
model: {name: synthetic}
saes:
  - {architecture: gated, widths: 32, l1_coefficient: 1}
training: {tokens: 10_000, batch_size: 100}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "synthetic.yaml"
    path.write_text(TEXT)
    return path


def test_a_model_is_all_that_it_takes(tmp_path: Path) -> None:
    sweep = load_text(tmp_path, TEXT)
    assert sweep.model == SyntheticSettings()
    assert sweep.used_sites == (SITE,) and sweep.rows_a_block == 2500
    assert sweep.source == "synthetic activations" and sweep.compute_dtype == "float32"


def test_what_is_written_down_is_read_again(tmp_path: Path) -> None:
    sweep = load_text(tmp_path, TEXT, "model.hierarchy={roots: 3}", "model.correlation={groups: 2}", "dataset.seed=4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Sweep.model_validate_json(sweep.model_dump_json()) == sweep


def test_the_trials_have_names_of_the_one_site(tmp_path: Path) -> None:
    sweep = load_text(tmp_path, TEXT)
    (trial,) = sweep.expand({SITE: 64}, {"model": "m", "rows": "r"})
    assert trial.name.startswith("synthetic_gated_w32_l1-1_") and trial.site == "synthetic"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # keys
        ("model.activ=3", ["model.activ: unknown key; did you mean 'active'?"]),
        ("model.context_size=64", ["model.context_size: unknown key", "d_in"]),
        ("model.hierarchy.root=3", ["model.hierarchy.root: unknown key; did you mean 'roots'?"]),
        ("model.hierarchy={branching: 2}", ["model.hierarchy.roots: missing; features with children"]),
        ("model.correlation={}", ["model.correlation.groups: missing"]),
        ("dataset.sed=1", ["dataset.sed: unknown key; did you mean 'seed'?"]),
        # what does not apply
        ("dataset.name=builtin", ["dataset.name: a synthetic sweep has no text", "seed, shuffle_tokens, max_norm"]),
        ("dataset.skip_positions=2", ["dataset.skip_positions: a synthetic sweep has no text"]),
        ("sites.layers=[1]", ["sites: a synthetic sweep has one site, synthetic"]),
        ("saes.0.sites={layers: [1]}", ["saes.0.sites: a synthetic sweep has one site, synthetic"]),
        ("evaluation.split=test", ["evaluation.split: does not apply to a synthetic sweep"]),
        ("evaluation.fraction=0.5", ["evaluation.fraction: does not apply to a synthetic sweep"]),
        ("evaluation.batch=4", ["evaluation.batch: does not apply to a synthetic sweep"]),
        ("producers.gpus=1", ["producers.gpus: 1, but synthetic rows are made on CPUs"]),
        ("producers.batch=8", ["producers.batch: does not apply to a synthetic sweep"]),
        ("references=[{source: theirs, site: blocks.1.hook_resid_post}]", ["references.0.site", "one of: synthetic"]),
        # types and bounds
        ("model.active=0", ["model.active: 0 should be greater than 0"]),
        ("model.active=many", ["model.active: 'many' should be a number"]),
        ("model.d_in=0", ["model.d_in: 0 should be greater than 0"]),
        ("model.features=1.5", ["model.features: 1.5 should be an integer"]),
        ("model.zipf=-1", ["model.zipf: -1"]),
        ("model.zipf=.nan", ["model.zipf: nan"]),
        ("model.max_frequency=1.5", ["model.max_frequency: 1.5 should be less than or equal to 1"]),
        ("model.magnitudes=normal", ["model.magnitudes: 'normal' should be 'constant', 'uniform', 'lognormal' or"]),
        ("model.noise=-0.1", ["model.noise: -0.1"]),
        ("model.seed=-1", ["model.seed: -1"]),
        ("model.hierarchy=3", ["model.hierarchy: 3 should be a mapping of keys"]),
        ("dataset.max_norm=0.5", ["dataset.max_norm: 0.5"]),
        # what cannot be
        ("model.active=300", ["model.active: 300 is out of reach: 256 features", "at most 76.8 on average"]),
        (
            "model={name: synthetic, features: 10, active: 4, max_frequency: 0.3}",
            ["model.active: 4 is out of reach", "at most 3 on average"],
        ),
        ("model.hierarchy={roots: 100}", ["model.hierarchy: 100 roots", "500 features, and there are 256"]),
        ("model.hierarchy={roots: 2, depth: 9}", ["model.hierarchy: 2 roots", "there are 256 (features)"]),
        (
            "model.hierarchy={roots: 2, exclusive: true, frequency: 0.3}",
            ["model.hierarchy.exclusive: 4 children", "at most 0.25"],
        ),
        ("model.correlation={groups: 257}", ["model.correlation: 257 groups", "256; at most as many"]),
        (
            "model.correlation={groups: 4, frequency: 0.1}",
            ["model.correlation: the most frequent", "on 1.65 of those of its group", "max_frequency to 0.1818"],
        ),
        ("model={name: synthetic, zipf: 10}", ["model.zipf: the rarest of 256 features", "which is never: lower zipf"]),
        (
            "model={name: synthetic, hierarchy: {roots: 2, branching: 1, depth: 9, frequency: 0.01}}",
            ["model.zipf: the rarest", "depth"],
        ),
        ("model={name: synthetic, features: 1000000, d_in: 1000000}", ["do not fit into memory; at most 1,000 feat"]),
        ("saes.0.target={point: mlp_out}", ["saes.0.target: synthetic rows have one place"]),
        ("model.coherence=0.1", ["model.coherence: 0.1 is out of reach", "0.108 or more (Welch's bound)"]),
        ("model.coherence=0", ["model.coherence: 0 is out of reach"]),
        ("model={name: synthetic, features: 3000, coherence: 0.4}", ["model.coherence: directions are looked for"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(file: Path, override: str, parts: list[str]) -> None:
    message = error_of(file, override)
    assert all(part in message for part in parts), message


def test_mistakes_of_several_sections_are_told_together(file: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_text(file.parent, TEXT, "model.activ=3", "dataset.sed=1", "training.tokens=x")
    assert all(key in str(caught.value) for key in ("model.activ", "dataset.sed", "training.tokens"))


def test_a_language_model_still_needs_its_sections(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_text(tmp_path, TEXT, "model.name=builtin")
    assert "dataset: missing" in str(caught.value) and "sites: missing" in str(caught.value)


@pytest.mark.parametrize("possible", ["model.active=76.8", "model.correlation={groups: 256}", "model.coherence=0.11"])
def test_what_is_just_possible_is_taken(tmp_path: Path, possible: str) -> None:
    assert load_text(tmp_path, TEXT, possible).is_synthetic
