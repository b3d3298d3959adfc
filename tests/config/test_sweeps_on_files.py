"""Sweep files on activations that lie on disk: which sections they have, and what does not apply to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
import pytest

from gsae_ray.config.explain import explain
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.errors import UserError

SWEEP: dict[str, Any] = {
    "name": "on_files",
    "activations": {"path": "acts"},
    "sites": {"layers": [1], "points": ["resid_post"]},
    "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": [1]}],
    "training": {"tokens": 1000, "batch_size": 10},
}


def sweep(**changes: Any) -> Sweep:
    return Sweep.model_validate({**SWEEP, **changes})


def complaint(**changes: Any) -> str:
    with pytest.raises(pydantic.ValidationError) as caught:
        sweep(**changes)
    return explain(caught.value, Sweep)


def test_model_and_dataset_may_be_left_out() -> None:
    found = sweep()
    assert found.model is None and not found.is_synthetic
    assert found.file_rows.seed is None and found.file_rows.max_norm == 10
    assert found.used_sites == (Site("blocks.1.hook_resid_post"),)
    assert found.source == "activations acts" and found.rows_a_block == 250
    spliced = sweep(model={"name": "builtin"}, dataset={"seed": 2, "repeat": True})
    assert spliced.model == ModelSettings(name="builtin") and spliced.file_rows.seed == 2
    assert spliced.source == "activations acts, model builtin"


def test_a_sweep_comes_back_as_it_was_written_down() -> None:
    """As a launch does that."""
    for changes in ({}, {"model": {"name": "builtin"}, "dataset": {"seed": 2, "shuffle_tokens": 100}}):
        found = sweep(**changes)
        assert Sweep.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"dataset": {"name": "builtin"}},
            "dataset.name: a sweep on files has no text; leave it out (this section",
        ),
        ({"dataset": {"tokens_column": "ids"}}, "dataset.tokens_column: a sweep on files has no text"),
        ({"dataset": {"sede": 1}}, "dataset.sede: unknown key; did you mean 'seed'"),
        ({"model": {"name": "synthetic"}}, "model: synthetic, but activations are read from disk; leave one"),
        ({"model": {"nmae": "builtin"}}, "model.nmae: unknown key; did you mean 'name'"),
        ({"activations": {}}, "activations.path: missing"),
        ({"activations": {"path": ""}}, "activations.path"),
        ({"activations": {"path": "a", "format": "csv"}}, "activations.format: 'csv'"),
        ({"activations": {"path": "a", "group_rows": 3, "group_column": "d"}}, "activations.group_rows: group_column"),
        (
            {"activations": {"path": "a", "heldout": "b"}, "evaluation": {"fraction": 0.1}},
            "evaluation.fraction: act",
        ),
        ({"evaluation": {"split": "test"}}, "evaluation.split: files have no splits; name held-out files with"),
        ({"evaluation": {"batch": 4}}, "evaluation.batch: does not apply to rows without a model; leave it out"),
        ({"producers": {"batch": 4}}, "producers.batch: does not apply: rows are read from disk; leave it out"),
    ],
)
def test_what_does_not_apply_is_refused(changes: Mapping[str, Any], expected: str) -> None:
    line = complaint(**changes)
    assert expected in line and "\n" not in line


def test_without_activations_a_model_and_data_have_to_be_named() -> None:
    both = {"activations": None}
    assert "model: missing" in complaint(**both)
    assert sweep(**both, model={"name": "builtin"}, dataset={"name": "builtin"}).source == "model builtin, data builtin"
    with pytest.raises(pydantic.ValidationError):
        sweep(**both, model=None, dataset={"name": "builtin"})


def test_layers_are_numbers_unless_a_model_tells_how_many_there_are() -> None:
    last = sweep(sites={"layers": [-1], "points": ["resid_post"]})
    with pytest.raises(UserError, match="files do not say how many layers the model has; give numbers from 0"):
        last.of_model(None)
    assert last.of_model(4).used_sites == (Site("blocks.3.hook_resid_post"),)
