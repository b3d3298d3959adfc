"""The sweep file: grids, expansion to trials, their identity, overrides, and one clear line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from gsae_ray.config import sweep as sweep_module
from gsae_ray.config.load import load_sweep
from gsae_ray.config.recipe import TrialTraining
from gsae_ray.config.reference import describe
from gsae_ray.config.site import POINTS, Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError, shown
from gsae_ray.fields import Settings, expand_grid
from gsae_ray.saes import REGISTRY, trainable_architectures

CASES = settings(max_examples=100, deadline=None, database=None)
QUICKSTART = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
TEXT = """\
name: test
model: {name: builtin}
dataset: {name: builtin}
sites: {layers: [1, 2], points: [resid_post, mlp_out]}
saes:
  - {architecture: gated, widths: [32, 64], l1_coefficient: [1, 2]}
  - {architecture: standard, widths: 48, l1_coefficient: 0.5, sites: {points: mlp_out}, lr: [1e-3, 3e-4], seeds: [0, 7]}
training: {tokens: 10_000, batch_size: 100, lr: 1e-3}
"""
GOLDEN_NAMES = [
    *(
        f"blocks.{layer}.{point}_gated_w{width}_l1-{l1}_norm_weighted-modern_lr0.001_seed0"
        for layer in (1, 2)
        for point in ("hook_resid_post", "hook_mlp_out")
        for width in (32, 64)
        for l1 in (1, 2)
    ),
    *(
        f"blocks.{layer}.hook_mlp_out_standard_w48_l1-0.5_norm_weighted-modern_lr{lr}_seed{seed}"
        for layer in (1, 2)
        for lr in ("0.001", "0.0003")
        for seed in (0, 7)
    ),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(TEXT)
    return path


def load_text(tmp_path: Path, text: str, *overrides: str) -> Sweep:
    path = tmp_path / "text.yaml"
    path.write_text(text)
    return load_sweep(path, overrides)


def expand(sweep: Sweep, d_in: int = 16, provenance: Mapping[str, str] | None = None) -> list[TrialSpec]:
    return sweep.expand(dict.fromkeys(sweep.used_sites, d_in), provenance or {"model": "m", "tokens": "t"})


def error_of(path: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        expand(load_sweep(path, overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- grids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, 0.5, "x", None, True])
def test_a_scalar_is_a_grid_of_one(value: object) -> None:
    assert expand_grid(value) == (value,)


def test_a_list_stands_for_itself() -> None:
    assert expand_grid([3, 1, 2]) == (3, 1, 2)


def test_log_range_is_evenly_spaced_between_its_ends() -> None:
    assert expand_grid({"log_range": [1, 16], "n": 5}) == (1.0, 2.0, 4.0, 8.0, 16.0)
    assert expand_grid({"log_range": [1e-5, 1e-3], "n": 3}) == (1e-5, 1e-4, 1e-3)
    assert expand_grid({"log_range": [3, 3], "n": 1}) == (3.0,)


def test_log_uniform_is_decided_by_its_seed() -> None:
    grid = {"log_uniform": [1, 16], "n": 4, "seed": 3}
    assert expand_grid(grid) == expand_grid(grid) == (2.24019, 4.1219, 4.60497, 7.12352)
    assert expand_grid({"log_uniform": [1, 16], "n": 4, "seed": 4}) != expand_grid(grid)
    assert expand_grid({"log_uniform": [1, 16], "n": 4}) == expand_grid({"log_uniform": [1, 16], "n": 4, "seed": 0})


@CASES
@given(
    form=st.sampled_from(["log_range", "log_uniform"]),
    low=st.floats(1e-6, 1e3),
    ratio=st.floats(1, 1e4),
    n=st.integers(1, 12),
)
def test_spelled_grids_are_sorted_within_their_bounds_and_short(form: str, low: float, ratio: float, n: int) -> None:
    values: Any = expand_grid({form: [low, low * ratio], "n": n})
    assert len(values) == n
    assert list(values) == sorted(values)
    assert all(low * (1 - 1e-5) <= value <= low * ratio * (1 + 1e-5) for value in values)
    assert all(float(f"{value:.6g}") == value for value in values)


def test_grids_may_be_spelled_in_a_sweep_file(path: Path) -> None:
    sweep = load_sweep(
        path,
        [
            "saes.0.l1_coefficient={log_range: [1, 4], n: 3}",
            "saes.0.widths={log_range: [16, 64], n: 3}",
            "training.lr={log_uniform: [1e-4, 1e-3], n: 2, seed: 1}",
        ],
    )
    gated = [trial for trial in expand(sweep) if trial.architecture == "gated"]
    assert [t.hyperparameters["l1_coefficient"] for t in gated[:6]] == [1, 1, 2, 2, 4, 4]
    assert {t.d_sae for t in gated} == {16, 32, 64}
    assert all(type(t.d_sae) is int for t in gated)
    assert len({t.training.lr for t in gated}) == 2


# ---- expansion ------------------------------------------------------------------------------------------------------


def test_a_sweep_expands_to_these_trials_in_this_order(path: Path) -> None:
    trials = expand(load_sweep(path))
    assert [trial.name for trial in trials] == GOLDEN_NAMES
    assert [trial.name for trial in expand(load_sweep(path))] == GOLDEN_NAMES
    assert len({trial.identity for trial in trials}) == len({trial.directory_name for trial in trials}) == len(trials)
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+", trial.directory_name) for trial in trials)


def test_quickstart_has_sixteen_trials() -> None:
    sweep = load_sweep(QUICKSTART)
    trials = expand(sweep, d_in=64)
    assert len(trials) == 16
    assert {trial.architecture for trial in trials} == {"gated", "standard"}
    assert sweep.experiment_name == "quickstart"


def test_every_sweep_file_of_the_repository_loads() -> None:
    for file in QUICKSTART.parent.glob("*.yaml"):
        assert expand(load_sweep(file), d_in=64), file


def test_module_sites_get_names_that_are_fit_for_a_folder(path: Path) -> None:
    sweep = load_sweep(path, ["sites={modules: [{module: a.b.3.mlp}, {module: a.b, io: input}]}", "saes.1.sites={}"])
    assert sweep.used_sites == (Site("a.b.3.mlp:output"), Site("a.b:input"))
    trials = expand(sweep)
    assert trials[0].site == "a.b.3.mlp:output"
    assert trials[0].name == "a.b.3.mlp-output_gated_w32_l1-1_norm_weighted-modern_lr0.001_seed0"


def test_expansion_factors_are_multiples_of_the_sites_width(path: Path) -> None:
    sweep = load_sweep(path, ["saes.0={architecture: gated, expansion_factors: [1, 2.5], l1_coefficient: 1}"])
    widths = {Site.of_point(1, "resid_post"): 16, Site.of_point(2, "resid_post"): 64}
    trials = sweep.expand({site: widths.get(site, 10) for site in sweep.used_sites}, {})
    found: dict[Any, list[int]] = {(t.site, t.d_in): [] for t in trials if t.architecture == "gated"}
    for t in trials[: 2 * len(found)]:
        found[t.site, t.d_in].append(t.d_sae)
    assert found["blocks.1.hook_resid_post", 16] == [16, 40]
    assert found["blocks.2.hook_resid_post", 64] == [64, 160]
    assert found["blocks.1.hook_mlp_out", 10] == [10, 25]


def test_an_entry_is_trained_at_the_sites_that_its_filter_selects(path: Path) -> None:
    def sites(entry_filter: str) -> list[str]:
        sweep = load_sweep(path, ["sites.modules=[{module: a.b}]", f"saes.1.sites={entry_filter}"])
        return list(dict.fromkeys(t.site for t in expand(sweep) if t.architecture == "standard"))

    resid = [f"blocks.{layer}.hook_resid_post" for layer in (1, 2)]
    mlp = [f"blocks.{layer}.hook_mlp_out" for layer in (1, 2)]
    assert sites("{layers: [1]}") == [resid[0], mlp[0]]
    assert sites("{points: [resid_post]}") == resid
    assert sites("{layers: 2, points: mlp_out}") == [mlp[1]]
    assert sites("{modules: [{module: a.b}]}") == ["a.b:output"]
    assert sites("{layers: 2, points: mlp_out, modules: [{module: a.b}]}") == [mlp[1], "a.b:output"]
    assert sites("null") == sites("{}") == [resid[0], mlp[0], resid[1], mlp[1], "a.b:output"]


def test_a_site_that_no_entry_trains_at_is_not_used(path: Path) -> None:
    sweep = load_sweep(path, ["saes.0.sites={layers: [2], points: [resid_post]}"])
    used = ["blocks.1.hook_mlp_out", "blocks.2.hook_resid_post", "blocks.2.hook_mlp_out"]
    assert [site.name for site in sweep.used_sites] == used
    assert {trial.site for trial in expand(sweep)} == set(used)


def test_an_entry_overrides_training(path: Path) -> None:
    overrides = ["saes.1.tokens=5000", "saes.1.lr_decay=0", "saes.1.adam_betas=[0.9, 0.99]", "training.seeds=[3]"]
    sweep = load_sweep(path, overrides)
    gated, standard = expand(sweep)[0].training, expand(sweep)[-1].training
    assert (gated.tokens, gated.lr_decay, gated.adam_betas, gated.seed) == (10_000, 0.2, (0.0, 0.999), 3)
    assert (standard.tokens, standard.lr_decay, standard.adam_betas) == (5000, 0, (0.9, 0.99))
    assert standard.batch_size == gated.batch_size == 100
    assert {t.training.seed for t in expand(sweep) if t.architecture == "standard"} == {0, 7}
    assert sweep.max_tokens(Site.of_point(1, "mlp_out")) == 10_000
    assert load_sweep(path, ["saes.1.tokens=20000"]).max_tokens(Site.of_point(1, "mlp_out")) == 20_000
    assert load_sweep(path, ["saes.1.tokens=20000"]).max_tokens(Site.of_point(1, "resid_post")) == 10_000


def test_entries_that_differ_in_training_alone_are_trials_of_their_own(path: Path) -> None:
    entry = "{architecture: gated, widths: 32, l1_coefficient: 1, "
    trials = expand(load_sweep(path, [f"saes=[{entry} lr_decay: 0}}, {entry} lr_decay: 0.2}}]"]))
    assert len({trial.name for trial in trials}) == len({trial.identity for trial in trials}) == 2 * 4


@CASES
@given(
    tokens=st.integers(1, 10**9),
    batch=st.integers(1, 10**5),
    log_every=st.none() | st.integers(1, 10**8),
    checkpoint_every=st.none() | st.integers(1, 10**8),
)
def test_intervals_are_whole_numbers_of_batches(
    tokens: int, batch: int, log_every: int | None, checkpoint_every: int | None
) -> None:
    training = {"tokens": max(tokens, batch), "batch_size": batch, "log_every_tokens": log_every}
    sweep = Sweep.model_validate(
        {
            "name": "test",
            "model": {"name": "builtin"},
            "dataset": {"name": "builtin"},
            "sites": {"layers": [0], "points": ["resid_post"]},
            "saes": [{"architecture": "gated", "widths": 8, "l1_coefficient": 1}],
            "training": {**training, "checkpoint_every_tokens": checkpoint_every},
        }
    )
    resolved = expand(sweep)[0].training
    assert resolved.log_every_tokens >= batch
    assert resolved.log_every_tokens % batch == 0
    assert resolved.checkpoint_every_tokens >= resolved.log_every_tokens
    assert resolved.checkpoint_every_tokens % resolved.log_every_tokens == 0
    assert resolved.steps == training["tokens"] // batch  # type: ignore[operator]


def test_a_trial_spec_survives_json(path: Path) -> None:
    for trial in expand(load_sweep(path)):
        assert TrialSpec.from_json(json.loads(json.dumps(trial.to_json()))) == trial


# ---- identity -------------------------------------------------------------------------------------------------------

ONE_TRIAL = """\
name: one
model: {name: builtin}
dataset: {name: builtin}
sites: {layers: [1], points: [resid_post]}
saes:
  - {architecture: gated, widths: [32], l1_coefficient: [1]}
training: {tokens: 10_000, batch_size: 100, lr: 1e-3}
"""


def identities(tmp_path: Path, *overrides: str, **expansion: Any) -> list[str]:
    return [trial.identity for trial in expand(load_text(tmp_path, ONE_TRIAL, *overrides), **expansion)]


@pytest.mark.parametrize(
    "override",
    [
        "saes.0.l1_coefficient=1.5",
        "saes.0.widths=33",
        "saes.0.architecture=standard",
        "training.lr=2e-3",
        "training.seeds=[1]",
        "training.batch_size=50",
        "training.tokens=10_100",
        "training.lr_warmup=0.02",
        "training.lr_decay=0.1",
        "training.l1_warmup=0.1",
        "training.adam_betas=[0.9, 0.999]",
        "sites.layers=[2]",
        "sites.points=[mlp_out]",
        "producers.batch=16",
        "producers.cpus=2",
        "producers.gpus=1",
        "trials.cpus=2",
        "trials.gpus=0.5",
    ],
)
def test_identity_changes_with_what_decides_the_weights(tmp_path: Path, override: str) -> None:
    base, changed = identities(tmp_path), identities(tmp_path, override)
    assert len(base) == len(changed) == 1
    assert base != changed


def test_identity_changes_with_provenance_and_the_width_of_the_site(tmp_path: Path) -> None:
    base = identities(tmp_path)
    assert identities(tmp_path, provenance={"model": "m", "tokens": "other"}) != base
    assert identities(tmp_path, provenance={"model": "other", "tokens": "t"}) != base
    assert identities(tmp_path, d_in=17) != base


@pytest.mark.parametrize(
    "override",
    [
        "name=another",
        "experiment=another",
        "training.log_every_tokens=500",
        "training.checkpoint_every_tokens=5000",
        "evaluation={tokens: 5, batch: 3, every_tokens: 1000, fraction: 0.5}",
        "producers.count=4",
        "producers.chunk_mib=1",
        "producers.budget_gib=1",
        "producers.timeout_s=10",
        "trials.max_concurrent=1",
        "saes.0.lr=[0.001]",
        "saes.0.l1_coefficient=1.0",
        "saes.0.widths=3.2e1",
    ],
)
def test_identity_does_not_change_with_what_leaves_the_weights_alone(tmp_path: Path, override: str) -> None:
    assert identities(tmp_path, override) == identities(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "saes.0.l1_coefficient=[4, 1, 2]",
        "saes.0.widths=[16, 32]",
        "training.seeds=[5, 0]",
        "training.lr=[1e-2, 1e-3]",
        "sites.layers=[0, 1, 2]",
        "sites.modules=[{module: a.b}]",
        "saes=[{architecture: standard, widths: 8, l1_coefficient: 1, tokens: 90_000},"
        " {architecture: gated, widths: 32, l1_coefficient: 1}]",
    ],
)
def test_adding_to_a_sweep_leaves_the_other_trials_as_they_were(tmp_path: Path, override: str) -> None:
    assert set(identities(tmp_path)) < set(identities(tmp_path, override))


# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "1.0e-3", ".1e-2", "0.001", "+1e-3", "1_0e-4"])
def test_1e_minus_3_is_a_number(path: Path, text: str) -> None:
    assert load_sweep(path, [f"training.lr={text}"]).training.lr == (0.001,)


@pytest.mark.parametrize("text", ["1e4", "10_000", "10000.0", "1e+4"])
def test_a_count_may_be_written_as_a_float(path: Path, text: str) -> None:
    tokens = load_sweep(path, [f"training.tokens={text}"]).training.tokens
    assert tokens == 10_000
    assert type(tokens) is int


def test_a_scalar_may_stand_for_a_list_of_one(path: Path) -> None:
    sweep = load_sweep(path, ["sites={layers: 1, points: resid_post}", "saes.0.widths=32", "saes.1.sites=null"])
    assert [site.name for site in sweep.used_sites] == ["blocks.1.hook_resid_post"]


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    sweep = load_text(tmp_path, ONE_TRIAL)
    assert sweep.experiment_name == "one"
    assert sweep.shuffle_tokens == 2500  # a quarter of the tokens
    assert load_text(tmp_path, ONE_TRIAL, "training.tokens=1e9").shuffle_tokens == 1_000_000
    assert load_text(tmp_path, ONE_TRIAL, "dataset.shuffle_tokens=64").shuffle_tokens == 64
    training = expand(sweep)[0].training
    assert (training.log_every_tokens, training.checkpoint_every_tokens) == (200, 2000)


@pytest.mark.parametrize("date", ["2024-05-01", "2024-13-45"])
def test_a_sweep_may_be_named_by_a_date(path: Path, date: str) -> None:
    assert load_sweep(path, [f"name={date}"]).name == date


def test_merge_keys_of_yaml_work(tmp_path: Path) -> None:
    entry = "  - &gated {architecture: gated, widths: [32], l1_coefficient: [1]}\n"
    merged = entry + "  - {<<: *gated, l1_coefficient: [2]}\n"
    text = ONE_TRIAL.replace("  - {architecture: gated, widths: [32], l1_coefficient: [1]}\n", merged)
    assert text != ONE_TRIAL
    trials = expand(load_text(tmp_path, text))
    assert [trial.hyperparameters["l1_coefficient"] for trial in trials] == [1, 2]


# ---- overrides ------------------------------------------------------------------------------------------------------


def test_set_overrides_any_key(path: Path) -> None:
    overrides = [
        "name=other",
        "model.context_size=64",
        "producers.count=3",  # of a section that the file leaves out
        "saes.0.l1_coefficient=[3, 4]",
        "saes.1.widths=[9]",
        "training.lr=[1e-4]",
        "sites.layers.1=0",
    ]
    sweep = load_sweep(path, overrides)
    assert (sweep.name, sweep.model.context_size, sweep.producers.count) == ("other", 64, 3)
    assert sweep.sites.layers == (1, 0)
    trials = expand(sweep)
    assert {t.hyperparameters["l1_coefficient"] for t in trials if t.architecture == "gated"} == {3, 4}
    assert {t.d_sae for t in trials if t.architecture == "standard"} == {9}
    assert {t.training.lr for t in trials if t.architecture == "gated"} == {1e-4}


def test_the_last_override_wins(path: Path) -> None:
    assert load_sweep(path, ["name=a", "name=b"]).name == "b"


def test_an_override_may_fill_an_empty_section(tmp_path: Path) -> None:
    assert load_text(tmp_path, ONE_TRIAL + "producers:\n", "producers.count=2").producers.count == 2


def test_an_override_may_hold_an_equals_sign(path: Path) -> None:
    assert load_sweep(path, ["model.name=a=b"]).model.name == "a=b"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("name", ["--set name", "path.to.key=value"]),
        ("=3", ["--set =3", "path.to.key=value"]),
        ("saes.2.widths=3", ["--set saes.2.widths", "list of 2", "'2'", "0 to 1"]),
        ("saes.x.widths=3", ["--set saes.x.widths", "list of 2", "'x'"]),
        ("saes.-1.widths=3", ["--set saes.-1.widths", "'-1'"]),
        ("saes.2=3", ["--set saes.2", "'2'", "0 to 1"]),
        ("training.tokens.x=3", ["--set training.tokens.x", "training.tokens is 10000"]),
        ("training.lr=[1,", ["--set training.lr", "not valid YAML"]),
        ("training.token=3", ["training.token", "did you mean 'tokens'?"]),
        ("trainin.tokens=3", ["trainin", "did you mean 'training'?"]),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(path: Path, override: str, parts: list[str]) -> None:
    message = error_of(path, override)
    assert all(part in message for part in parts), message


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # positions that are no rows
        ("dataset.skip_first_position=true", ["dataset", "skip_positions: 1"]),
        ("dataset.skip_positions=127", ["dataset.skip_positions: 127", "128", "at most 126"]),
        ("dataset.skip_positions=-1", ["dataset.skip_positions", "-1"]),
        ("dataset.skip_positions=true", ["dataset.skip_positions"]),
        # unknown keys, with the nearest right one
        ("trainin={}", ["trainin", "unknown key", "did you mean 'training'?"]),
        ("training.batchsize=3", ["training.batchsize", "unknown key", "did you mean 'batch_size'?"]),
        ("model.nam=x", ["model.nam", "did you mean 'name'?"]),
        ("dataset.sede=x", ["dataset.sede", "did you mean 'seed'?"]),
        ("evaluation.token=1", ["evaluation.token", "did you mean 'tokens'?"]),
        ("producers.cpu=1", ["producers.cpu", "did you mean 'cpus'?"]),
        ("trials.max_concurent=1", ["trials.max_concurent", "did you mean 'max_concurrent'?"]),
        ("sites.layer=1", ["sites.layer", "did you mean 'layers'?"]),
        ("sites.modules=[{module: a, oi: input}]", ["sites.modules.0.oi", "unknown key"]),
        ("sites.modules=[{modul: a}]", ["sites.modules.0.modul", "did you mean 'module'?"]),  # a required key misspelt
        ("training={token: 5}", ["training.token:", "did you mean 'tokens'?"]),
        ("saes.0.width=3", ["saes.0.width:", "did you mean 'widths'?"]),
        ("saes.0.l1_coeficient=3", ["saes.0.l1_coeficient:", "did you mean 'l1_coefficient'?"]),
        ("saes.0.sites.layer=3", ["saes.0.sites.layer", "did you mean 'layers'?"]),
        # unknown values of a fixed list
        ("saes.0.architecture=gatd", ["saes.0", "'gatd'", "did you mean 'gated'?"]),
        ("sites.points=[resid_pots]", ["sites.points", "'resid_pots'", "did you mean 'resid_post'?"]),
        ("saes.1.sites.points=mlpout", ["saes.1.sites.points", "'mlpout'", "did you mean 'mlp_out'?"]),
        ("model.dtype=fp32", ["model.dtype", "'fp32'", "'float32', 'bfloat16' or 'float16'"]),
        ("sites.modules=[{module: a, io: out}]", ["sites.modules.0.io", "'out'", "'input' or 'output'"]),
        # wrong types
        ("training.tokens=many", ["training.tokens", "'many'", "integer"]),
        ("training.tokens='10000'", ["training.tokens", "'10000'", "integer"]),
        ("training.tokens=1.5", ["training.tokens", "1.5", "integer"]),
        ("training.tokens=true", ["training.tokens", "True", "integer"]),
        ("training.tokens=", ["training.tokens", "None", "integer"]),
        ("training.lr='1e-3'", ["training.lr.0", "'1e-3'", "number"]),
        ("training.seeds=[1.5]", ["training.seeds.0", "1.5", "integer"]),
        ("training=3", ["training", "3"]),
        ("model=null", ["model", "None"]),
        ("saes=3", ["saes", "3"]),
        ("saes.0=3", ["saes.0", "3"]),
        ("saes.0.architecture=3", ["saes.0.architecture", "3", "string"]),
        ("saes.0.widths=['8']", ["saes.0.widths.0", "'8'", "integer"]),
        ("saes.0.l1_coefficient=abc", ["saes.0.l1_coefficient", "'abc'", "number"]),
        ("saes.0.l1_coefficient=[2, true]", ["saes.0.l1_coefficient", "True", "number"]),
        ("saes.0.l1_coefficient=[[1, 2]]", ["saes.0.l1_coefficient", "[1, 2]"]),
        ("saes.0.l1_coefficient=null", ["saes.0.l1_coefficient", "None", "number"]),
        ("saes.0.tokens=abc", ["saes.0", "tokens", "'abc'", "integer"]),
        ("dataset.repeat=1", ["dataset.repeat", "1 should be true or false"]),
        ("name=[x]", ["name", "['x']", "string"]),
        # out of range
        ("saes.0.widths=0", ["saes.0.widths.0", "0 should be greater than 0"]),
        ("saes.0.widths=[8, -5]", ["saes.0.widths.1", "-5 should be greater than 0"]),
        ("saes.0={architecture: gated, expansion_factors: [0.01], l1_coefficient: 1}", ["expansion_factors", "0.01"]),
        ("saes.0={architecture: gated, expansion_factors: -1, l1_coefficient: 1}", ["saes.0.expansion_factors", "-1"]),
        ("saes.0.l1_coefficient=-1", ["saes.0.l1_coefficient", "-1"]),
        ("saes.0.l1_coefficient=.inf", ["saes.0.l1_coefficient", "inf"]),
        ("saes.0.l1_coefficient=.nan", ["saes.0.l1_coefficient", "nan"]),
        ("training.lr=0", ["training.lr.0", "0 should be greater than 0"]),
        ("training.lr=.inf", ["training.lr.0", "inf"]),
        ("dataset.seed=-1", ["dataset.seed", "-1 should be greater than or equal to 0"]),
        ("dataset.seed=5_000_000_000", ["dataset.seed", "5000000000 should be less than"]),
        ("training.seeds=[1, -1]", ["training.seeds.1", "-1 should be greater than or equal to 0"]),
        ("training.seeds=[1_000_000_000_000_000_000_000]", ["training.seeds.0", "should be less than"]),
        ("training.lr_warmup=2", ["training.lr_warmup", "2 should be less than or equal to 1"]),
        ("training.lr_warmup=0.9", ["lr_warmup + lr_decay = 1.1"]),
        ("training.tokens=99", ["tokens", "99", "100"]),
        ("saes.1.batch_size=20000", ["saes.1", "tokens", "10000", "20000"]),
        ("training.adam_betas=[0, 1]", ["adam_betas", "[0.0, 1.0]"]),
        ("model.context_size=1", ["model.context_size", "1 should be greater than or equal to 3"]),
        ("producers.count=0", ["producers.count", "0 should be greater than 0"]),
        ("producers.gpus=-1", ["producers.gpus", "-1"]),
        ("evaluation.fraction=1", ["evaluation.fraction", "1 should be less than 1"]),
        ("training.seeds=3", ["training.seeds", "[3], or [0, 1, 2]"]),
        ("saes.0.seeds=0", ["saes.0.seeds", "[0], or [0, 1, 2]"]),
        ("name=my sweep", ["name", "'my sweep'"]),
        # missing
        ("model={}", ["model.name", "missing"]),
        ("training={}", ["training.tokens", "missing", "rows that a trial trains on"]),
        ("saes.0={widths: 3}", ["saes.0.architecture", "missing"]),
        ("saes.0={architecture: gated, widths: 3}", ["saes.0", "l1_coefficient", "missing"]),
        ("saes.0={architecture: gated, l1_coefficient: 3}", ["saes.0", "either widths or expansion_factors"]),
        ("saes.0.expansion_factors=2", ["saes.0", "either widths or expansion_factors"]),
        ("training.adam_betas=[0]", ["training.adam_betas", "missing"]),
        ("sites={}", ["sites", "no site"]),
        ("sites={layers: [1]}", ["sites", "no site"]),
        ("sites={layers: [1], modules: [{module: a}]}", ["sites", "layers", "points"]),  # or layers would do nothing
        ("sites={points: [mlp_out], modules: [{module: a}]}", ["sites", "layers", "points"]),
        # empty and repeated
        ("saes=[]", ["saes", "empty list"]),
        ("saes.0.widths=[]", ["saes.0.widths", "empty list"]),
        ("saes.0.l1_coefficient=[]", ["saes.0", "l1_coefficient", "empty list"]),
        ("training.lr=[]", ["training.lr", "empty list"]),
        ("saes.1.seeds=[]", ["saes.1", "seeds", "empty list"]),
        ("training.seeds=[0, 0]", ["training.seeds", "twice", "[0, 0]"]),
        ("saes.0.l1_coefficient=[1, 1.0]", ["saes.0", "l1_coefficient", "twice", "[1, 1.0]"]),
        ("saes.1.sites.layers=[7]", ["saes.1.sites", "none of the sweep's sites"]),
        (
            "saes.1={architecture: gated, widths: 32, l1_coefficient: 2}",
            ["saes", "two entries", "blocks.1.hook_resid_post_gated_w32_l1-2_norm_weighted-modern_lr0.001_seed0"],
        ),
        # grids
        ("saes.0.l1_coefficient={log_range: [1, 4]}", ["saes.0", "l1_coefficient", "log_range: [low, high], n: 5"]),
        ("saes.0.widths={log_rang: [1, 4], n: 2}", ["saes.0.widths", "log_range: [low, high], n: 5"]),
        ("training.lr={log_range: [0, 4], n: 2}", ["training.lr", "0 < low <= high"]),
        ("training.lr={log_range: [4, 1], n: 2}", ["training.lr", "0 < low <= high"]),
        ("training.lr={log_range: 4, n: 2}", ["training.lr", "0 < low <= high"]),
        ("training.lr={log_uniform: [1, 4], n: 0}", ["training.lr", "n is 0"]),
        ("training.lr={log_uniform: [1, 4], n: 2, seed: x}", ["training.lr", "seed", "'x'"]),
        ("training.lr={log_range: [1, 4], n: 2, seed: 1}", ["training.lr", "a grid is"]),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_value(path: Path, override: str, parts: list[str]) -> None:
    message = error_of(path, override)
    assert all(part in message for part in parts), message
    assert "should be String" not in message  # one sentence
    assert "Input" not in message
    assert message.startswith((f"{path}: ", "--set ", "saes: "))  # saes: what shows only when the sweep is expanded


def test_all_mistakes_of_a_file_are_told_at_once_a_line_each(path: Path) -> None:
    def lines(*overrides: str) -> list[str]:
        with pytest.raises(UserError) as caught:
            load_sweep(path, overrides)
        return str(caught.value).splitlines()

    first, *others = lines("fooo=1", "saes.1.batchsize=3", "model.dtype=x", "training.lr=[0, -1]")
    assert first == f"{path}: 5 problems"
    keys = ["model.dtype", "saes.1.batchsize", "training.lr.0", "training.lr.1", "fooo"]
    assert [line.strip().split(": ")[0] for line in others] == keys
    assert others[1].startswith("  saes.1.batchsize: unknown key; did you mean 'batch_size'?")
    # What only shows when the parts fit together comes at once too.
    _, *others = lines("saes.1.batch_size=20_000", "saes.0.batch_size=30_000", "saes.1.sites.layers=[1, 7]")
    assert [line.strip() for line in others] == [
        "saes.0: tokens: 10000 is less than one batch of 30000",
        "saes.1: tokens: 10000 is less than one batch of 20000",
        "saes.1.sites.layers: 7 is not among the sweep's own sites",
    ]
    assert len(lines(*(f"wrong{i}=1" for i in range(30)))) == 6
    assert lines(*(f"wrong{i}=1" for i in range(30)))[-1] == "  and 26 more"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (TEXT + "name: again\n", ["line 9", "'name' stands twice"]),
        (TEXT.replace("{tokens: 10_000,", "{tokens: 10_000, tokens: 5,"), ["line 8", "'tokens' stands twice"]),
        (TEXT.replace("lr: 1e-3}", "lr: 1e-3"), ["line", "not valid YAML"]),
        ("name: x\nmodel: {name: [}\n", ["line 2", "not valid YAML"]),
        ("name: x\n\tmodel: y\n", ["line 2", "not valid YAML"]),
        ("a: \0", ["not valid YAML"]),
        ("x: !!python/object/apply:os.getcwd []\n", ["line 1: x: the tag", "not taken"]),
        ("x: !!int y\n", ["line 1: x: the tag", "not taken"]),
        ("? [1]\n: 2\n", ["line 1", "a key that is no plain text"]),
        ("", ["a sweep file is a mapping of name, experiment, model"]),
        ("- 1\n- 2\n", ["a sweep file is a mapping"]),
        ("just text", ["a sweep file is a mapping"]),
        (TEXT.replace("name: test\n", ""), ["name: missing"]),
        (TEXT + "7: x\n", ["7"]),
    ],
)
def test_a_file_that_is_not_a_sweep_is_one_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "text.yaml"
    path.write_text(text)
    message = error_of(path)
    assert str(path) in message
    assert all(part in message for part in parts), message
    assert "should be Keys" not in message


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x80")
    for path, reason in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "directory"),
        (binary, "not a text file"),
    ):
        message = error_of(path)
        assert str(path) in message
        assert reason in message


# ---- absurd numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("producers.count=1e300", "producers.count: 1e+300 should be at most 10,000"),
        ("producers.count=10001", "producers.count: 10001 should be at most 10,000 (one cluster runs no more)"),
        ("producers.count=.inf", "producers.count: inf should be"),
        ("producers.gpus=1e300", "producers.gpus: 1e+300 should be at most 10,000"),
        ("producers.gpus=.inf", "producers.gpus: inf should be a finite number"),
        ("trials.gpus=.inf", "trials.gpus: inf; give a number of GPUs, at most 10,000"),
        ("trials.gpus=" + "9" * 40, "trials.gpus: 1e+40; give a number of GPUs"),
        ("trials.cpus=1e5", "trials.cpus: 100000 should be at most 10,000"),
        ("trials.hang_timeout_s=1e300", "trials.hang_timeout_s: 1e+300 should be at most 3.1536e07 (a year)"),
        ("producers.timeout_s=1e10", "producers.timeout_s: 10000000000.0 should be at most 3.1536e07 (a year)"),
        ("producers.budget_gib=1e300", "producers.budget_gib: 1e+300 should be at most 1e09 (no cluster has"),
        ("training.tokens=1e300", "training.tokens: 1e+300 should be at most 1e15"),
        (
            "training.tokens=1e16",
            "training.tokens: 10000000000000000 should be at most 1e15 (no run gets through more)",
        ),
        ("training.batch_size=1e12", "training.batch_size: 1000000000000 should be at most 1e09 (they are in memory"),
        ("training.lr=1e300", "training.lr.0: 1e+300 should be at most 1e38 (SAEs are trained in float32)"),
        ("training.lr=" + "9" * 40, "training.lr.0: 1e+40 should be at most 1e38"),
        ("training.lr=" + "9" * 5000, "training.lr.0: '9999999999"),
        ("training.adam_betas=[0, " + "9" * 40 + "]", "training: adam_betas: [0.0, 1e+40]; each must be"),
        ("saes.0.l1_coefficient=1e300", "saes.0.l1_coefficient: 1e+300 should be at most 1e38 (SAEs are trained in"),
        (
            "saes.0.widths=1e12",
            "saes.0.widths.0: 1000000000000 should be at most 1e09 (an SAE's weights are in memory)",
        ),
        (
            "saes.0={architecture: gated, expansion_factors: 1e300, l1_coefficient: 1}",
            "saes.0.expansion_factors.0: 1e+3",
        ),
        ("saes.0={architecture: gated, expansion_factors: 1e6, l1_coefficient: 1}", None),
        ("saes.0.l1_coefficient={log_range: [1, 2], n: 20000}", "saes.0.l1_coefficient: n is 20000; log_range needs"),
        (
            "training.lr={log_uniform: [1, 2], n: 100000000000}",
            "training.lr: n is 100000000000; log_uniform needs a whole",
        ),
        ("training.lr={log_range: [1, .inf], n: 3}", "training.lr: log_range needs finite [low, high]"),
        ("training.lr={log_range: [true, 2], n: 3}", "training.lr: log_range needs finite [low, high]"),
        (
            f"training.seeds={list(range(1001))}",
            "training.seeds: 1,001 values; a grid has at most 1,000: each is an SAE",
        ),
        ("model.context_size=1e300", "model.context_size: 1e+300 should be at most 1e09"),
        ("saes.².widths=3", "--set saes.².widths: saes is a list of 2; '²' should be 0 to 1"),
        ("saes." + "9" * 5000 + ".widths=3", "--set saes.9999"),
        ("x" * 100_000 + "=1", "x" * 200 + "…: unknown key"),
        ("name=" + "x" * 100_000, "name: 'xxxx"),
        ("model.dtype=" + "x" * 100_000, "model.dtype: 'xxxx"),
        (f"model={list(range(9999))}", "model: [0, 1, 2"),
        (".".join(["training"] * 100) + "=1", "--set training.training"),
    ],
)
def test_an_absurd_number_is_refused_at_once_with_the_reason(path: Path, override: str, line: str | None) -> None:
    message = error_of(path, override) if line else "saes: "
    assert line is None or line in message
    # What is echoed is cut; the keys that are known may be long.
    assert len(re.sub(r"\(one of: .*?\)", "", message)) < 200 + 400 + len(str(path))


def test_more_trials_than_a_sweep_can_have_are_counted_before_any_is_made(path: Path) -> None:
    seeds = f"training.seeds={list(range(1000))}"
    message = error_of(path, seeds, "saes.0.l1_coefficient={log_range: [1, 16], n: 1000}")
    assert "saes: 8,000,008 trials; a sweep has at most 10,000, each with files" in message
    grids = "l1_coefficient: {log_range: [1, 9], n: 1000}, tied: [true, false], auxiliary: [frozen, unfrozen, none]"
    entry = f"saes.0={{architecture: gated, widths: 8, {grids}, learn_r_mag: [true, false]}}"
    assert "saes.0: 12,000 trials; a sweep has at most 10,000" in error_of(path, entry)


def test_a_message_echoes_at_most_200_characters() -> None:
    assert shown("x" * 199) == repr("x" * 199)[:200] + "…"
    assert shown(10**5000) == "what is too large to write"
    assert shown("a\nb", quoted=False) == "a b"
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    assert len(shown(deep)) <= 201


# ---- the description ------------------------------------------------------------------------------------------------


def schema_models() -> Sequence[type[Settings]]:
    models = [m for m in vars(sweep_module).values() if isinstance(m, type) and issubclass(m, Settings)]
    return [model for model in models if model not in (Settings, TrialTraining)]


def test_the_description_names_every_field_with_its_own_description() -> None:
    lines = describe().splitlines()
    assert len(schema_models()) >= 9
    models: list[type[BaseModel]] = [*schema_models()]
    models += [REGISTRY[name].Hyperparameters for name in trainable_architectures()]
    for model in models:
        for name, field in model.model_fields.items():
            found = [line.strip() for line in lines if line.strip().startswith(f"{name}:")]
            assert found, name
            if field.description:
                assert any(field.description in line for line in found), name
    for name in (*trainable_architectures(), *POINTS):
        assert name in describe()


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("producers", "count: [1]"),
        ("producers", "gpus: [0]"),
        ("trials", "cpus: [1]"),
        ("dataset", "seed: [0]"),
        ("dataset", "repeat: [false]"),
        ("dataset", "skip_positions: [1]"),
        ("dataset", "split: [train]"),
        ("training", "seeds: [0]"),
        ("training", "lr: [0.0003]"),
        ("training", "adam_betas: [[0, 0.999]]"),
        ("training", "log_every_tokens: [auto]"),
        ("model", "context_size: [128]"),
    ],
)
def test_the_description_shows_defaults_as_yaml_writes_them(section: str, line: str) -> None:
    within = re.search(rf"^{section}:.*\n((?:  .*\n?)+)", describe(), re.MULTILINE)
    assert within is not None
    assert re.search(rf"^  {re.escape(line)} ", within[1], re.MULTILINE), within[1]


def test_every_field_has_a_description() -> None:
    for model in schema_models():
        for name, field in model.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
            assert field.description or nested, f"{model.__name__}.{name}"


def test_a_trial_spec_is_frozen(path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        expand(load_sweep(path))[0].name = "x"  # type: ignore[misc]


# ---- names that tell values apart -----------------------------------------------------------------------------------


def names(tmp_path: Path, *overrides: str) -> list[str]:
    found = [trial.name for trial in expand(load_text(tmp_path, ONE_TRIAL, *overrides))]
    assert all(re.fullmatch(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*", name) for name in found)
    return found


@pytest.mark.parametrize("key", ["saes.0.l1_coefficient", "training.lr"])
def test_a_sweep_has_both_runs_of_1e6_and_1e_minus_6(tmp_path: Path, key: str) -> None:
    word = "_l1-" if "l1" in key else "_lr"
    small, large = names(tmp_path, f"{key}=[1e-6, 1e6]")
    assert f"{word}1e-06_" in small  # as ever
    assert f"{word}1e06_" in large


@CASES
@given(data=st.data())
def test_names_tell_any_two_numbers_apart(data: Any) -> None:
    floats = st.floats(1e-30, 1e37, exclude_min=True)
    first = data.draw(floats)
    second = data.draw(floats | st.just(math.nextafter(first, math.inf)) | st.just(1 / first))
    if first == second:
        return
    for key in ("l1_coefficient", "lr", "gradient_clip", "adam_betas"):
        entries = [
            {"architecture": "gated", "widths": 8, "l1_coefficient": 1}
            | {key: [0.0, value % 1] if key == "adam_betas" else value}
            for value in (first, second)
        ]
        if entries[0] == entries[1]:
            continue
        sweep = Sweep.model_validate(
            {
                "name": "test",
                "model": {"name": "builtin"},
                "dataset": {"name": "builtin"},
                "sites": {"layers": [0], "points": ["resid_post"]},
                "saes": entries,
                "training": {"tokens": 1000, "batch_size": 100},
            }
        )
        one, other = expand(sweep)
        assert one.name != other.name
        assert one.training.recipe != other.training.recipe or key in ("l1_coefficient", "lr")


def test_what_was_told_apart_already_keeps_its_name(tmp_path: Path) -> None:
    values = [1, 0.5, 3e-4, 1e-6, 1.04743, 2.5e-05, 123456, 0.000123456]
    found = names(tmp_path, f"saes.0.l1_coefficient={values}")
    assert found == [
        f"blocks.1.hook_resid_post_gated_w32_l1-{value:g}_norm_weighted-modern_lr0.001_seed0" for value in values
    ]


def test_sites_that_would_share_a_folder_have_names_of_their_own(tmp_path: Path) -> None:
    modules = ["a/b", "a-b", "a b", "a:b", "../a", ".a", "-a", "ä", "a-output"]
    overrides = [f"sites={{modules: [{', '.join(f'{{module: {m!r}}}' for m in modules)}, {{module: a}}]}}"]
    found = names(tmp_path, *overrides)
    assert len(set(found)) == len(modules) + 1
    assert found[1] == "a-b-output_gated_w32_l1-1_norm_weighted-modern_lr0.001_seed0"  # as ever
