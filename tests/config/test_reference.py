"""The reference of a sweep file's keys, made from the schema: docs/sweep_file.md, and what the command line prints."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from gsae_ray.config import plain_yaml
from gsae_ray.config import sweep as sweep_module
from gsae_ray.config.explain import models_in
from gsae_ray.config.recipe import TrialTraining
from gsae_ray.config.reference import KEYS, describe, markdown
from gsae_ray.config.site import POINTS
from gsae_ray.config.sweep import Sweep
from gsae_ray.fields import Settings
from gsae_ray.saes import REGISTRY, trainable_architectures

PAGE = Path(__file__).parents[2] / "docs" / "sweep_file.md"
EXAMPLES = re.findall("```yaml\n(.*?)```", markdown(), re.DOTALL)


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), (
        f"python -m gsae_ray.config.reference {PAGE.relative_to(PAGE.parents[1])} makes it again"
    )


def test_what_help_prints_is_current() -> None:
    assert KEYS.read_text(encoding="utf-8") == describe() + "\n", (
        f"python -m gsae_ray.config.reference {PAGE.relative_to(PAGE.parents[1])} makes it again"
    )


def test_the_page_does_not_depend_on_the_types_that_typing_remembers() -> None:
    for forget in typing._cleanups:  # type: ignore[attr-defined]
        forget()
    assert PAGE.read_text(encoding="utf-8") == markdown()


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_of_the_page_is_a_sweep_together_with_the_first(number: int) -> None:
    values = [plain_yaml.load(EXAMPLES[n], "example") for n in (0, number)]
    Sweep.model_validate({**values[0], **values[1]})


def test_every_key_has_a_row_with_its_type_default_and_bounds() -> None:
    lines = markdown().splitlines()
    assert sum(line.startswith("| `") for line in lines) > 80
    assert all(line.count(" | ") >= 4 for line in lines if line.startswith("| `"))
    assert "| `context_size` | integer | `128` | at least 3, at most 1e09 (they are in memory at once) |" in markdown()
    assert "| `lr` | number · grid | `0.0003` | above 0, " in markdown()
    assert "| `seed` | integer | `0` | at least 0, below 4,294,967,296 |" in markdown()
    for name in trainable_architectures():
        assert f"### Keys of architecture {name}" in markdown()
        assert all(f"| `{key}` |" in markdown() for key in REGISTRY[name].Hyperparameters.model_fields)


# ---- what the command line prints -----------------------------------------------------------------------------------


def schema_models() -> Sequence[type[Settings]]:
    """Of the sections and, of those that come in kinds, of each kind."""
    found = {model: None for model in vars(sweep_module).values() if isinstance(model, type)}
    found |= dict.fromkeys(model for field in Sweep.model_fields.values() for model in models_in(field.annotation))
    return [m for m in found if issubclass(m, Settings) and m not in (Settings, TrialTraining)]


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
            nested = any(models_in(field.annotation))
            assert field.description or nested, f"{model.__name__}.{name}"
