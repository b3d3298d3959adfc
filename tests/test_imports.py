"""Who imports whom, by the contracts of pyproject.toml; what a process does without; and the public names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import gsae_ray

REPOSITORY = Path(__file__).parents[1]


def python(code: str) -> None:
    """Runs code in a process of its own; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_of_imports_are_kept() -> None:
    """Imports go down only, without circles; who imports Ray and MLflow; what the store's process may load."""
    python("from importlinter.cli import lint_imports\nraise SystemExit(lint_imports(no_cache=True, no_logo=True))")


def test_loading_an_sae_needs_neither_ray_nor_mlflow(tmp_path: Path) -> None:
    python(
        "import sys; sys.modules['ray'] = sys.modules['mlflow'] = None\n"
        "import gsae_ray\nfrom gsae_ray.saes import SAEConfig, build\n"
        "sae = build(SAEConfig(architecture='gated', d_in=4, d_sae=8, hyperparameters={'l1_coefficient': 1.0}))\n"
        f"sae.save({str(tmp_path)!r}); gsae_ray.load({str(tmp_path)!r})\n"
    )


@pytest.mark.parametrize(
    ("module", "does_without"),
    [
        ("gsae_ray.actors.store_actor", ["torch", "transformers"]),  # they would take more than the store's budget
        ("gsae_ray.actors.producer_actor", ["torch", "transformers"]),  # the store loads it with a producer's handle
        ("gsae_ray.actors.trial_actor", ["transformers", "datasets"]),
        ("gsae_ray.cli.main", ["torch", "pandas", "pydantic"]),  # each command, also one that only asks for a state
        ("gsae_ray.jobs.job", ["torch", "transformers"]),
        ("gsae_ray.driver.display", ["torch", "mlflow"]),  # `status` shows what it shows
    ],
)
def test_a_process_does_without_what_takes_seconds_and_memory(module: str, does_without: list[str]) -> None:
    missing = "".join(f"sys.modules['{name}'] = None; " for name in does_without)
    python(f"import sys; {missing}import {module}")


def test_the_command_line_shows_its_help_without_what_takes_seconds() -> None:
    python(
        "import sys; sys.modules.update(dict.fromkeys(('ray', 'mlflow', 'torch', 'pandas', 'pydantic')))\n"
        "from gsae_ray.cli.main import main\n"
        "for command in main.commands: main([command, '--help'], standalone_mode=False)"
    )


@pytest.mark.parametrize("package", ["driver", "jobs"])
def test_rays_environment_is_set_before_any_module_of_a_package_imports_ray(package: str) -> None:
    """Ray reads some of it when it is imported. A package is imported before its modules, whichever comes first."""
    python(
        f"import os, sys; import gsae_ray.{package}\n"
        "assert os.environ['TUNE_DISABLE_SIGINT_HANDLER'] == '1' and 'ray' not in sys.modules"
    )


@pytest.mark.parametrize("name", gsae_ray.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert name in dir(gsae_ray)
    assert getattr(gsae_ray, name) is not None


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gsae_ray' has no attribute 'bset'"):
        gsae_ray.bset  # noqa: B018


def test_the_notebooks_names_are_there() -> None:
    from gsae_ray.results import check_recipes, sequences
    from gsae_ray.results.intervals import interval, l0_ratio

    assert all(map(callable, (check_recipes, sequences, interval, l0_ratio)))
