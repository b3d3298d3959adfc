"""The page docs/sweep_file.md, which is made from the schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gsae_ray.config import plain_yaml
from gsae_ray.config.reference import markdown
from gsae_ray.config.sweep import Sweep
from gsae_ray.saes import REGISTRY, trainable_architectures

PAGE = Path(__file__).parents[2] / "docs" / "sweep_file.md"
EXAMPLES = re.findall("```yaml\n(.*?)```", markdown(), re.DOTALL)


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), (
        f"python -m gsae_ray.config.reference {PAGE.relative_to(PAGE.parents[1])} makes it again"
    )


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
