"""Identities change with what decides the weights and with nothing else, and names tell values apart."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_texts import CASES, ONE_TRIAL, expand, load_text

from gsae_ray.config.sweep import Sweep

# ---- identity -------------------------------------------------------------------------------------------------------


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
        "training.engine=sparse-cpu",
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


def test_identity_changes_with_engine_and_precision_on_gpus(tmp_path: Path) -> None:
    on_gpus = "trials.gpus=1"
    others = ["engine=dense", "engine=sparse-cuda", "precision=tf32", "precision=bf16"]
    found = [identities(tmp_path, on_gpus, f"training.{other}") for other in others]
    assert found[0] == identities(tmp_path, on_gpus)
    assert len({identity for (identity,) in found}) == len(others)


def test_trials_keep_the_identities_that_they_had_before_a_key_was_added(tmp_path: Path) -> None:
    """Their directories are found by them. A new revision of numbers (`version.REVISION`) is to change these."""
    assert identities(tmp_path) == ["0ebe6cc5ca35388b"]
    assert identities(tmp_path, "training.engine=sparse-cpu") == ["bdd1db256a4ced26"]


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
        "training.engine=dense",
        "training.precision=float32",
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
