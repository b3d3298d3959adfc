"""Entries of the architectures with one objective: their recipe, names and grids, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pydantic
import pytest

from gsae_ray.config.explain import explain
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError

SITE = "blocks.1.hook_resid_post"


def sweep(*entries: dict[str, Any], **training: Any) -> Sweep:
    return Sweep.model_validate(
        {
            "name": "new",
            "model": {"name": "builtin"},
            "dataset": {"name": "builtin"},
            "sites": {"layers": [1], "points": ["resid_post"]},
            "saes": [{"widths": [64], **entry} for entry in entries],
            "training": {"tokens": 100_000, "batch_size": 128, **training},
        }
    )


def trials(*entries: dict[str, Any], **training: Any) -> list[TrialSpec]:
    found = sweep(*entries, **training)
    return found.expand({found.used_sites[0]: 16}, {})


def refusal(*entries: dict[str, Any], **training: Any) -> str:
    try:
        trials(*entries, **training)
    except UserError as error:
        return str(error)
    except pydantic.ValidationError as error:
        return explain(error, Sweep)
    raise AssertionError("it is not refused")


TOPK = {"architecture": "topk", "k": [4, 8]}
BATCHTOPK = {"architecture": "batchtopk", "k": 4}
MATRYOSHKA = {"architecture": "matryoshka_batchtopk", "k": 4}
JUMPRELU = {"architecture": "jumprelu", "l0_coefficient": [0.001, 0.01]}
QUADRATIC = {"architecture": "jumprelu", "l0_coefficient": 1, "penalty": "quadratic", "quadratic_l0": [8, 16]}
P_ANNEAL = {"architecture": "p_anneal", "l1_coefficient": 1}
GATED = {"architecture": "gated", "l1_coefficient": 1}


def test_their_recipe_names_their_objective_whatever_that_of_the_others_is() -> None:
    found = trials(TOPK, BATCHTOPK, MATRYOSHKA, JUMPRELU, P_ANNEAL, GATED, objective=["paper", "norm_weighted"])
    assert [t.recipe for t in found] == ["unit_norm/modern"] * 7 + ["paper/modern", "norm_weighted/modern"]
    assert trials({**TOPK, "schedule": "paper"})[0].recipe.startswith("unit_norm/paper")


@pytest.mark.parametrize("entries", [[TOPK], [P_ANNEAL, BATCHTOPK], [TOPK, GATED]])
def test_a_sweep_that_is_written_down_is_read_again(entries: list[dict[str, Any]]) -> None:
    """As a Sweep is that goes to a cluster: a default that nothing reads is no value that somebody gave."""
    given = sweep(*entries)
    assert Sweep.model_validate_json(given.model_dump_json()) == given


def test_sparsity_is_what_sets_it() -> None:
    found = trials(TOPK, JUMPRELU, QUADRATIC)
    assert [t.sparsity for t in found] == [4, 8, 0.001, 0.01, 8, 16]
    assert [t.variant for t in found] == ["", "", "", "", "penalty=quadratic", "penalty=quadratic"]
    assert found[0].name == f"{SITE}_topk_w64_k4_unit_norm-modern_lr0.0003_seed0"
    assert found[2].name == f"{SITE}_jumprelu_w64_l0-0.001_unit_norm-modern_lr0.0003_seed0"
    assert "_jumprelu_w64_l0-1_quadratic_l0-8_penalty-quadratic_" in found[4].name
    assert len({t.name for t in found}) == len({t.identity for t in found}) == 6


def test_a_list_of_lists_of_prefix_widths_is_a_grid_and_the_default_has_one_identity() -> None:
    one, two, default = trials({**MATRYOSHKA, "prefix_widths": [[8, 64], [16, 32, 64]]}, MATRYOSHKA)
    assert [t.hyperparameters["prefix_widths"] for t in (one, two, default)] == [[8, 64], [16, 32, 64], None]
    (single,) = trials({**MATRYOSHKA, "prefix_widths": [8, 64]})
    assert single == one
    (stated,) = trials({**MATRYOSHKA, "prefix_widths": [4, 8, 16, 32, 64]})
    assert stated == default
    assert TrialSpec.from_json(one.to_json()) == one


BAD: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "an objective": ([{**TOPK, "objective": "paper"}], {}, "saes.0.objective: a topk SAE has no choice of objectives"),
    "an objective that nothing reads": ([TOPK], {"objective": "paper"}, "training.objective: nothing reads it: topk"),
    "k above the width": ([{**TOPK, "k": 65}], {}, "saes.0.k: 65 is more than the 64 features"),
    "no k": ([{"architecture": "topk"}], {}, "saes.0.k: missing; a topk SAE needs it"),
    "prefixes that fall": ([GATED, {**MATRYOSHKA, "prefix_widths": [32, 8, 64]}], {}, "saes.1.prefix_widths: .* rise"),
    "prefixes that stay": ([{**MATRYOSHKA, "prefix_widths": [8, 8, 64]}], {}, "saes.0.prefix_widths: .* have to rise"),
    "prefixes that end early": ([{**MATRYOSHKA, "prefix_widths": [8, 32]}], {}, "the last one is 32; .* the width, 64"),
    "no prefixes": ([{**MATRYOSHKA, "prefix_widths": []}], {}, "saes.0.prefix_widths"),
    "a prefix of nothing": ([{**MATRYOSHKA, "prefix_widths": [0, 64]}], {}, "saes.0.prefix_widths"),
    "a threshold that never fires": ([{**JUMPRELU, "initial_threshold": 1.0}], {}, "saes.0.initial_threshold: .*1"),
    "a threshold above all": ([{**JUMPRELU, "initial_threshold": 0.8}], {}, "saes.0.initial_threshold: 0.8 is above"),
    "an L0 above the width": ([{**QUADRATIC, "quadratic_l0": 65}], {}, "saes.0.quadratic_l0: 65 is more than the 64"),
    "units of no penalty": ([{**TOPK, "l1_units": "paper"}], {}, "saes.0.l1_units: a topk SAE has no L1 penalty"),
    "a warm-up of none": ([{**TOPK, "l1_warmup": 0.1}], {}, "saes.0.l1_warmup: a topk SAE has no sparsity penalty"),
    "a key of another": (
        [{**TOPK, "l1_coefficient": 1}],
        {},
        "saes.0.l1_coefficient: unknown key for topk, one of gated, .*; give k, which sets the sparsity of topk SAEs",
    ),
    "no bandwidth": ([{**JUMPRELU, "bandwidth": 0}], {}, "saes.0.bandwidth"),
    "a target without its penalty": ([{**JUMPRELU, "quadratic_l0": 8}], {}, "penalty: quadratic and quadratic_l0"),
    "a penalty without its target": ([{**JUMPRELU, "penalty": "quadratic"}], {}, "quadratic_l0, the L0 that it asks"),
    "an engine that has none": ([TOPK], {"engine": "sparse-cpu"}, "saes.0.engine: sparse-cpu has no topk SAEs"),
    "p of 0": ([{**P_ANNEAL, "p_end": 0}], {}, "saes.0.p_end"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_makes_no_sense_is_refused_by_its_key(what: str) -> None:
    entries, training, expected = BAD[what]
    message = refusal(*entries, **training)
    assert re.search(expected, message), message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("entry", [TOPK, BATCHTOPK, MATRYOSHKA, JUMPRELU, P_ANNEAL])
def test_auto_is_the_dense_engine_for_them_and_leaves_the_others_theirs(entry: dict[str, Any]) -> None:
    """An entry that is added to a sweep leaves the identities, and so the finished SAEs, of the others."""
    *added, gated = trials(entry, GATED, engine="auto")
    assert {t.training.engine for t in added} == {"dense"}
    assert [gated] == trials(GATED, engine="auto") and gated.training.engine == "sparse-cpu"
    assert added == trials(entry), "their names and identities are those of the dense engine"
    assert sweep(entry, engine="auto").possible_engines == ("dense",)
