"""Entries that ask for an L0 in place of a coefficient: names and identities, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pydantic
import pytest

from gsae_ray.config.explain import explain
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.saes import REGISTRY, SAEConfig
from gsae_ray.tracking.params import trial_params

SITE = "blocks.1.hook_resid_post"
GATED = {"architecture": "gated", "target_l0": [8, 16]}
STANDARD = {"architecture": "standard", "target_l0": 8}
JUMPRELU = {"architecture": "jumprelu", "target_l0": 8}
P_ANNEAL = {"architecture": "p_anneal", "target_l0": 8}
CHILD = {"architecture": "rescale_shift", "target_l0": 8}
LAMBDA = {"architecture": "standard", "l1_coefficient": [1, 8]}


def sweep(*entries: dict[str, Any]) -> Sweep:
    return Sweep.model_validate(
        {
            "name": "asking",
            "model": {"name": "builtin"},
            "dataset": {"name": "builtin"},
            "sites": {"layers": [1], "points": ["resid_post"]},
            "saes": [{"widths": [64], **entry} for entry in entries],
            "training": {"tokens": 100_000, "batch_size": 128},
        }
    )


def trials(*entries: dict[str, Any], parents: dict[str, tuple[SAEConfig, str]] | None = None) -> list[TrialSpec]:
    found = sweep(*entries)
    return found.expand({found.used_sites[0]: 16}, {}, parents)


def test_the_target_is_in_name_and_identity_in_place_of_the_coefficient() -> None:
    found = trials(GATED, STANDARD, JUMPRELU, P_ANNEAL)
    assert [t.sparsity for t in found] == [8, 16, 8, 8, 8]
    assert found[0].name == f"{SITE}_gated_w64_target_l0-8_norm_weighted-modern_lr0.0003_seed0"
    assert found[3].name == f"{SITE}_jumprelu_w64_target_l0-8_unit_norm-modern_lr0.0003_seed0"
    assert all(t.hyperparameters["target_l0"] == t.sparsity for t in found)
    assert not any(key.endswith("_coefficient") for t in found for key in t.hyperparameters)
    assert len({t.identity for t in found}) == len({t.name for t in found}) == 5
    assert {t.variant for t in found} == {""}
    assert TrialSpec.from_json(found[0].to_json()) == found[0]


def test_other_entries_are_what_they_were() -> None:
    alone, beside = trials(LAMBDA), trials(LAMBDA, GATED, STANDARD)
    assert beside[:2] == alone
    assert alone[0].hyperparameters == {"l1_coefficient": 1.0}
    assert trials({**LAMBDA, "target_l0": None}) == alone


def test_a_target_is_a_grid_beside_others() -> None:
    found = trials({**GATED, "target_l0": {"log_range": [4, 16], "n": 3}, "tied": [True, False]})
    assert [t.sparsity for t in found] == [4, 4, 8, 8, 16, 16]
    assert [t.variant for t in found] == ["", "tied=false"] * 3


def test_a_sweep_that_is_written_down_is_read_again() -> None:
    given = sweep(GATED, LAMBDA)
    assert Sweep.model_validate_json(given.model_dump_json()) == given


def test_a_run_says_what_was_asked_and_in_which_units_the_coefficient_is_found() -> None:
    params = trial_params(trials(STANDARD)[0])
    assert params["sparsity"] == params["target_l0"] == 8
    assert params["sparsity_units"] == "" and params["l1_units"] == "sum"
    assert "l1_coefficient" not in params


def test_rescale_and_shift_starts_from_the_parent_of_the_same_target() -> None:
    parent, other, child = trials({**STANDARD, "target_l0": [8, 16]}, CHILD)
    assert child.parent == parent.name != other.name
    assert child.hyperparameters == {"target_l0": 8.0, "parent": None}
    assert "_rescale_shift_w64_target_l0-8_" in child.name
    with pytest.raises(UserError, match=r"no standard trial .* target_l0 \(8\) and seed \(0\)"):
        trials(LAMBDA, CHILD)  # its λ of 8 is another thing
    by_lambda = {"architecture": "rescale_shift", "l1_coefficient": 8}
    assert trials(LAMBDA, STANDARD, by_lambda)[-1].parent == trials(LAMBDA)[1].name


def test_a_run_that_was_asked_for_an_l0_may_be_a_parent() -> None:
    cfg = SAEConfig(architecture="standard", d_in=16, d_sae=64, hyperparameters={"target_l0": 8.0}, site=SITE)
    (child,) = trials({"architecture": "rescale_shift", "parent": "a" * 32}, parents={"a" * 32: (cfg, "hash")})
    assert child.sparsity == 8 and child.hyperparameters == {"target_l0": 8.0, "parent": "a" * 32}
    REGISTRY["rescale_shift"].check_hyperparameters(child.hyperparameters)


@pytest.mark.parametrize("entry", [GATED, STANDARD, JUMPRELU, P_ANNEAL])
def test_a_saved_sae_may_have_it(entry: dict[str, Any]) -> None:
    trial = trials(entry)[0]
    sae = REGISTRY[trial.architecture]
    sae.check_hyperparameters(trial.hyperparameters)
    sae.check_hyperparameters({**trial.hyperparameters, "subtract_b_dec": True}, trained_here=False)
    for value in (0, -1.0, "8"):
        with pytest.raises(pydantic.ValidationError):
            sae.check_hyperparameters({**trial.hyperparameters, "target_l0": value})


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a target of 0": ({**GATED, "target_l0": 0}, "saes.0.target_l0.*: 0 should be greater than 0"),
    "a negative one": ({**GATED, "target_l0": [8, -1]}, "saes.0.target_l0.*: -1 should be greater than 0"),
    "a word": ({**GATED, "target_l0": "many"}, "saes.0.target_l0.*: 'many' should be a number"),
    "not finite": ({**GATED, "target_l0": float("nan")}, "saes.0.target_l0"),
    "none": ({**GATED, "target_l0": []}, "saes.0.target_l0: an empty list"),
    "the same twice": ({**GATED, "target_l0": [8, 8]}, "saes.0.target_l0: a value stands twice"),
    "the width": ({**GATED, "target_l0": 64}, "saes.0.target_l0: 64 of 64 features; ask for fewer"),
    "more than there are features": ({**GATED, "target_l0": 65}, "saes.0.target_l0: 65 of 64 features"),
    "a coefficient too": ({**GATED, "l1_coefficient": 1}, "saes.0.target_l0: training finds the l1_coefficient for it"),
    "a coefficient of L0 too": ({**JUMPRELU, "l0_coefficient": 1}, "saes.0.target_l0: .* the l0_coefficient for it"),
    "another wish": (
        {**JUMPRELU, "penalty": "quadratic", "quadratic_l0": 8},
        "saes.0.target_l0: quadratic_l0 asks for an L0 too, in another way; leave one of the two out",
    ),
    "topk": ({"architecture": "topk", "k": 8, "target_l0": 8}, "saes.0.target_l0: .* and k says how sparse it is"),
    "batchtopk": ({"architecture": "batchtopk", "k": 8, "target_l0": 8}, "saes.0.target_l0: .*; leave it out"),
    "a run as a parent too": ({**CHILD, "parent": "a" * 32}, "saes.0: l1_coefficient or target_l0 of a parent"),
    "neither": ({"architecture": "gated"}, "saes.0.l1_coefficient: missing; a gated SAE needs it"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_makes_no_sense_is_refused_by_its_key(what: str) -> None:
    entry, expected = BAD[what]
    try:
        trials(entry)
    except UserError as error:
        message = str(error)
    except pydantic.ValidationError as error:
        message = explain(error, Sweep)
    else:
        raise AssertionError("it is not refused")
    assert re.search(expected, message), message
    assert len(message.splitlines()) == 1
