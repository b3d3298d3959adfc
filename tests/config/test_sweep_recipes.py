"""Sweeps over recipes, ablations and parents: expansion, names, identities, and mistakes in one line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gsae_ray.config.load import load_sweep
from gsae_ray.config.recipe import ResamplingSettings, TrainingSettings
from gsae_ray.config.reference import describe
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import MAX_NAME, TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.saes import REGISTRY, SAEConfig, trainable_architectures

HEAD = """\
name: test
model: {name: builtin}
dataset: {name: builtin}
sites: {layers: [1, 2], points: [resid_post, mlp_out]}
training: {tokens: 10_000, batch_size: 100}
saes:
"""
GATED = "{architecture: gated, widths: 32, l1_coefficient: 1"
STANDARD = "{architecture: standard, widths: 32, l1_coefficient: [1, 2]"
CHILD = "{architecture: rescale_shift, widths: 32, l1_coefficient: 1"
ONE_SITE = "sites={layers: 1, points: resid_post}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep.yaml"


def load(path: Path, *entries: str, overrides: tuple[str, ...] = (ONE_SITE,)) -> Sweep:
    path.write_text(HEAD + "".join(f"  - {entry}}}\n" for entry in entries))
    return load_sweep(path, overrides)


def expand(sweep: Sweep, d_in: int | Mapping[str, int] = 16, **arguments: Any) -> list[TrialSpec]:
    widths = {site: d_in if isinstance(d_in, int) else d_in[site.name] for site in sweep.used_sites}
    return sweep.expand(widths, {"model": "m", "tokens": "t"}, **arguments)


def error_of(path: Path, *entries: str, overrides: tuple[str, ...] = (ONE_SITE,), **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        expand(load(path, *entries, overrides=overrides), **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- grids ----------------------------------------------------------------------------------------------------------


def test_objectives_schedules_and_ablations_are_grids(path: Path) -> None:
    entry = (
        f"{GATED}, objective: [paper, norm_weighted], schedule: [paper, modern], auxiliary: [frozen, unfrozen, none]"
    )
    trials = expand(load(path, f"{entry}, tied: [true, false], seeds: [0, 1]"))
    assert len(trials) == 2 * 2 * 3 * 2 * 2
    found = {
        (
            t.training.objective,
            t.training.schedule,
            t.hyperparameters["auxiliary"],
            t.hyperparameters["tied"],
            t.training.seed,
        )
        for t in trials
    }
    options = (
        ("paper", "norm_weighted"),
        ("paper", "modern"),
        ("frozen", "unfrozen", "none"),
        (True, False),
        (0, 1),
    )
    default = {("paper", "frozen"), ("norm_weighted", "unfrozen")}  # said or not, it is the same SAE
    expected = {(o, s, None if (o, a) in default else a, t, seed) for o, s, a, t, seed in itertools.product(*options)}
    assert found == expected
    assert len({t.name for t in trials}) == len({t.identity for t in trials}) == len(trials)
    assert all(len(t.name) <= MAX_NAME and re.fullmatch(r"[A-Za-z0-9_.\-]+", t.name) for t in trials)


def test_a_name_tells_recipe_and_ablations(path: Path) -> None:
    plain, ablated = expand(load(path, GATED, f"{GATED}, tied: false, auxiliary: none, objective: paper, lr_decay: 0"))
    assert plain.name == "blocks.1.hook_resid_post_gated_w32_l1-1_norm_weighted-modern_lr0.0003_seed0"
    assert ablated.name == (
        "blocks.1.hook_resid_post_gated_w32_l1-1_tied-false_auxiliary-none_paper-modern_lr0.0003_seed0_lr_decay0"
    )
    assert plain.variant == ""
    assert ablated.variant == "tied=false,auxiliary=none"
    assert ablated.training.recipe == "paper/modern+lr_decay=0"


def test_long_names_are_cut_and_stay_unique(path: Path) -> None:
    module = ".".join(["transformer"] * 20)
    overrides = (f"sites={{modules: [{{module: {module}}}]}}",)
    trials = expand(load(path, f"{GATED}, objective: [paper, norm_weighted], seeds: [0, 1]", overrides=overrides))
    assert len({t.name for t in trials}) == 4
    assert all(len(t.name) == MAX_NAME for t in trials)
    assert all(len(t.directory_name.encode()) <= 255 for t in trials)
    again = expand(load(path, f"{GATED}, objective: [paper, norm_weighted], seeds: [0, 1]", overrides=overrides))
    assert [t.name for t in again] == [t.name for t in trials]


def test_resampling_of_an_entry_gives_a_name_within_the_limit(path: Path) -> None:
    entries = [f"{GATED}, resampling: {{at_steps: [{', '.join(map(str, range(k, 90)))}]}}" for k in (1, 2)]
    trials = expand(load(path, *entries))
    assert len({t.name for t in trials}) == 2
    assert all(len(t.name) <= MAX_NAME for t in trials)


@pytest.mark.parametrize(
    "option",
    [
        "objective: paper",
        "schedule: paper",
        "tied: false",
        "learn_r_mag: false",
        "auxiliary: none",
        "auxiliary: frozen",
        "l1_units: paper",
        "input_scaling: false",
        "gradient_clip: 0",
        "l1_warmup: 0.1",
        "lr_warmup: 0.2",
        "lr_decay: 0.1",
        "resampling: {at_steps: [10, 20]}",
        "resampling: {at_steps: [10, 20], direction: input}",
        "resampling: {at_steps: [10, 20], window_steps: 3}",
        "resampling: {at_steps: [10, 20], inputs: 100}",
        "resampling: {at_steps: [10, 20], rewarm_steps: 5}",
        "adam_betas: [0.9, 0.999]",
    ],
)
def test_identity_and_name_change_with_every_option(path: Path, option: str) -> None:
    plain, changed = expand(load(path, GATED, f"{GATED}, {option}"))
    assert plain.identity != changed.identity
    assert plain.name != changed.name
    if option.startswith("resampling: {at_steps: [10, 20],"):
        other = expand(load(path, f"{GATED}, resampling: {{at_steps: [10, 20]}}"))[0]
        assert other.identity != changed.identity


@pytest.mark.parametrize(
    "option",
    ["tied: true", "learn_r_mag: true", "auxiliary: null", "objective: [norm_weighted]", "lr_decay: 0.2"],
)
def test_identity_does_not_change_when_a_default_is_spelled_out(path: Path, option: str) -> None:
    (plain,), (spelled,) = expand(load(path, GATED)), expand(load(path, f"{GATED}, {option}"))
    assert plain.identity == spelled.identity


# ---- rescale & shift ------------------------------------------------------------------------------------------------


def test_rescale_and_shift_finds_its_parent(path: Path) -> None:
    standard = "{architecture: standard, widths: [32, 64], l1_coefficient: [1, 2]"
    child = "{architecture: rescale_shift, widths: [32, 64], l1_coefficient: [1, 2]"
    trials = expand(load(path, f"{child}, seeds: [0, 3]", f"{standard}, seeds: [0, 3]", overrides=()))
    by_name = {t.name: t for t in trials}
    children = [t for t in trials if t.architecture == "rescale_shift"]
    assert len(children) == len(trials) // 2 == 4 * 2 * 2 * 2
    for t in children:
        assert t.parent is not None
        parent = by_name[t.parent]
        assert parent.architecture == "standard"
        assert (parent.site, parent.d_sae, parent.training.seed) == (t.site, t.d_sae, t.training.seed)
        assert parent.hyperparameters["l1_coefficient"] == t.hyperparameters["l1_coefficient"]
    assert len({t.parent for t in children}) == len(children)
    assert all(t.parent is None for t in trials if t.architecture == "standard")


def test_where_both_objectives_are_there_the_parent_has_the_childs(path: Path) -> None:
    both = "objective: [paper, norm_weighted], schedule: [paper, modern]"
    trials = expand(load(path, f"{STANDARD}, {both}", f"{CHILD}, {both}"))
    by_name = {t.name: t for t in trials}
    children = [t for t in trials if t.parent is not None]
    assert len(children) == 4
    for t in children:
        parent = by_name[t.parent or ""]
        assert parent.training.recipe == t.training.recipe


def test_a_childs_own_lr_and_tokens_need_not_be_its_parents(path: Path) -> None:
    trials = expand(load(path, STANDARD, f"{CHILD}, lr: 1e-2, tokens: 2000"))
    assert trials[-1].parent == trials[0].name


def test_identity_of_a_child_changes_with_its_parent(path: Path) -> None:
    first = expand(load(path, STANDARD, f"{CHILD}, lr: 1e-2"))[-1]
    second = expand(load(path, f"{STANDARD}, lr: 1e-3", f"{CHILD}, lr: 1e-2"))[-1]
    assert first.training == second.training
    assert first.identity != second.identity


def test_a_child_survives_json(path: Path) -> None:
    child = expand(load(path, STANDARD, CHILD))[-1]
    assert TrialSpec.from_json(child.to_json()) == child


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        (
            [GATED, CHILD],
            ["saes.1", "no standard trial", "width (32)", "l1_coefficient (1, in l1_units sum)", "seed (0)", "parent"],
        ),
        ([STANDARD, CHILD.replace("32", "33")], ["saes.1", "no standard trial", "width (33)"]),
        (
            [STANDARD, CHILD.replace("t: 1", "t: 3")],
            ["saes.1", "no standard trial", "l1_coefficient (3, in l1_units sum)"],
        ),
        ([STANDARD, f"{CHILD}, seeds: [9]"], ["saes.1", "no standard trial", "seed (9)"]),
        (
            [f"{STANDARD}, batch_size: 50", f"{STANDARD}, batch_size: 25", CHILD],
            ["saes.2", "2 standard trials", "exactly one"],
        ),
        (
            [f"{STANDARD}, objective: paper", f"{CHILD}, objective: norm_weighted"],
            ["saes.1", "objective paper", "norm_weighted", "both the same"],
        ),
        (["{architecture: rescale_shift, widths: 32"], ["saes.0", "l1_coefficient", "parent"]),
        ([f"{CHILD}, parent: abc"], ["saes.0", "give one of them"]),
        ([f"{CHILD}, tied: false"], ["saes.0.tied: unknown key"]),
        (
            [f"{STANDARD}, sites: {{layers: 2}}", f"{CHILD}, sites: {{layers: 1}}"],
            ["no standard", "blocks.1"],
        ),
    ],
)
def test_a_missing_or_ambiguous_parent_is_one_line(path: Path, entries: list[str], parts: list[str]) -> None:
    overrides = ("sites={layers: [1, 2], points: resid_post}",)
    message = error_of(path, *entries, overrides=overrides)
    assert all(part in message for part in parts), message


def run_parent(**changes: Any) -> dict[str, tuple[SAEConfig, str]]:
    fields = {"architecture": "standard", "d_in": 16, "d_sae": 32, "site": "blocks.1.hook_resid_post", **changes}
    return {"abc": (SAEConfig(**{"hyperparameters": {"l1_coefficient": 2.0}, **fields}), "hash")}


def test_a_parent_may_be_a_run(path: Path) -> None:
    sweep = load(path, "{architecture: rescale_shift, widths: 32, parent: abc")
    (trial,) = expand(sweep, parents=run_parent())
    assert trial.parent == "run:abc"
    assert trial.hyperparameters["l1_coefficient"] == 2.0
    assert "parentabc" in trial.name
    other = {"abc": (run_parent()["abc"][0], "another SAE")}
    assert expand(sweep, parents=other)[0].identity != trial.identity
    assert expand(sweep, parents=run_parent(metadata={"model": "of my own", "training": None})) == [trial]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"architecture": "gated"}, ["architecture gated", "standard"]),
        ({"d_sae": 33}, ["d_sae 33", "32"]),
        ({"d_in": 17}, ["d_in 17", "16"]),
        ({"site": "blocks.2.hook_resid_post"}, ["site blocks.2.hook_resid_post", "blocks.1.hook_resid_post"]),
        ({"hyperparameters": {}}, ["was not trained here: its l1_coefficient is not known"]),
    ],
)
def test_a_run_that_cannot_be_the_parent_is_one_line(path: Path, change: dict[str, Any], parts: list[str]) -> None:
    entry = "{architecture: rescale_shift, widths: 32, parent: abc"
    message = error_of(path, entry, parents=run_parent(**change))
    assert all(part in message for part in ["saes.0.parent", "abc", *parts]), message


# ---- equal compute --------------------------------------------------------------------------------------------------

EQUAL = "{architecture: standard, l1_coefficient: 1, widths: {equal_compute_with: gated}"


def widths(trials: list[TrialSpec], architecture: str = "standard") -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for t in trials:
        if t.architecture == architecture:
            found.setdefault(t.site, []).append(t.d_sae)
    return found


def test_equal_compute_is_half_as_many_features_again(path: Path) -> None:
    trials = expand(load(path, "{architecture: gated, widths: [32, 64], l1_coefficient: 1", EQUAL))
    assert widths(trials) == {"blocks.1.hook_resid_post": [48, 96]}


def test_equal_compute_counts_every_gated_entry_of_the_site_once(path: Path) -> None:
    entries = [
        EQUAL,  # it may stand first
        "{architecture: gated, widths: [32, 64], l1_coefficient: [1, 2]",
        "{architecture: gated, widths: [64, 128], l1_coefficient: 1, tied: false, sites: {layers: 2}",
        "{architecture: gated, expansion_factors: 2.5, l1_coefficient: 1, sites: {points: mlp_out}",
    ]
    names = [f"blocks.{layer}.hook_{point}" for layer in (1, 2) for point in ("resid_post", "mlp_out")]
    found = widths(expand(load(path, *entries, overrides=()), dict(zip(names, (16, 20, 16, 20), strict=True))))
    assert found == {
        "blocks.1.hook_resid_post": [48, 96],
        "blocks.1.hook_mlp_out": [48, 75, 96],
        "blocks.2.hook_resid_post": [48, 96, 192],
        "blocks.2.hook_mlp_out": [48, 75, 96, 192],
    }


def test_equal_compute_heeds_the_entrys_own_filter(path: Path) -> None:
    sweep = load(path, GATED, f"{EQUAL}, sites: {{layers: 2, points: mlp_out}}", overrides=())
    assert widths(expand(sweep)) == {"blocks.2.hook_mlp_out": [48]}


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ([STANDARD, EQUAL], ["saes.1", "equal_compute_with", "no entry", "gated at blocks.1.hook_resid_post"]),
        ([f"{GATED}, sites: {{layers: 2}}", EQUAL], ["saes.1", "gated at blocks.1.hook_resid_post"]),
        ([GATED, EQUAL.replace("gated", "standard")], ["saes.1", "'standard'", "'gated'"]),
        ([GATED, EQUAL.replace("equal_compute_with", "equal_compute")], ["saes.1.widths", "a grid is"]),
        ([GATED, EQUAL.replace("architecture: standard", "architecture: gated")], ["saes.1", "for standard SAEs"]),
        ([GATED, f"{EQUAL}, expansion_factors: 2"], ["saes.1", "either widths or expansion_factors"]),
        (["{architecture: gated, expansion_factors: 0.01, l1_coefficient: 1", EQUAL], ["expansion_factors", "0.01"]),
    ],
)
def test_equal_compute_with_nothing_is_one_line(path: Path, entries: list[str], parts: list[str]) -> None:
    message = error_of(path, *entries, overrides=("sites={layers: [1, 2], points: resid_post}",))
    assert all(part in message for part in parts), message


# ---- architectures and the description ------------------------------------------------------------------------------


def test_every_architecture_of_the_registry_is_trained() -> None:
    assert set(trainable_architectures()) == set(REGISTRY)


def test_the_description_shows_every_option_of_recipes_and_architectures() -> None:
    text = describe()
    models: list[type[BaseModel]] = [TrainingSettings, ResamplingSettings]
    models += [REGISTRY[name].Hyperparameters for name in trainable_architectures()]
    for model in models:
        for name, field in model.model_fields.items():
            assert f"{name}:" in text, name
            assert field.description and field.description in text, name
    for name in trainable_architectures():
        assert re.search(rf"[(, ]{name}[,)]", text), name
    for word in ("equal_compute_with: gated", "norm_weighted", "[[25000, 50000, 75000, 100000]]", "[819200]"):
        assert word in text, word


def test_notices_of_all_entries_are_told_once(path: Path) -> None:
    sweep = load(path, f"{GATED}, schedule: paper", f"{STANDARD}, schedule: [paper, modern]", CHILD)
    lines = sweep.notices()
    assert len(lines) == len(set(lines)) == 2
    assert "lr warm-up" in lines[0] and "at_steps" in lines[1]
    assert load(path, GATED).notices() == []


def test_the_longest_trial_of_a_site_is_the_longest_entrys(path: Path) -> None:
    sweep = load(path, f"{STANDARD}, tokens: 5000", f"{CHILD}, tokens: 20000")
    assert sweep.max_tokens(Site("blocks.1.hook_resid_post")) == 20_000


@pytest.mark.parametrize("said", ["lr_decay: 0.2", "l1_warmup: 0.05", "resampling: false", "gradient_clip: 1"])
def test_what_a_schedule_says_anyway_is_the_same_trial(path: Path, said: str) -> None:
    with pytest.raises(UserError, match="two entries describe the trial .* \\(also as "):
        expand(load(path, GATED, f"{GATED}, {said}"))


def test_a_child_tells_its_parents_recipe_where_it_is_another(path: Path) -> None:
    parent = STANDARD.replace("}", "")
    *_, child = expand(load(path, f"{parent}, lr_decay: 0", CHILD))
    assert child.recipe == "norm_weighted/modern after norm_weighted/modern+lr_decay=0"
    *_, child = expand(load(path, parent, CHILD))
    assert child.recipe == "norm_weighted/modern"
