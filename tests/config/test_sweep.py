"""A sweep's expansion to trials: which, in which order, and trained how."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_texts import CASES, QUICKSTART, expand

from gsae_ray.config.load import load_sweep
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec

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


def test_a_trial_spec_is_frozen(path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        expand(load_sweep(path))[0].name = "x"  # type: ignore[misc]
