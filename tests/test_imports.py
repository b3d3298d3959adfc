"""The core is free of Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gsae_ray"
WITH_RAY = ("actors", "driver", "jobs", "cli")
WITH_MLFLOW = ("tracking", "results")
CORE = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.glob("*/*.py"))
    if path.parent.name not in WITH_RAY and path.name != "__init__.py"
]


@pytest.mark.parametrize("without", ["ray", "mlflow"])
def test_the_core_imports_without_ray_and_all_but_results_without_mlflow(without: str) -> None:
    modules = [m for m in CORE if without == "ray" or m.split(".")[1] not in WITH_MLFLOW]
    code = f"import sys; sys.modules[{without!r}] = None\nimport importlib\n"
    code += f"for name in {modules!r}: importlib.import_module(name)\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_loading_an_sae_needs_neither_ray_nor_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['mlflow'] = None\n"
        "import gsae_ray\nfrom gsae_ray.saes import SAEConfig, build\n"
        "sae = build(SAEConfig(architecture='gated', d_in=4, d_sae=8, hyperparameters={'l1_coefficient': 1.0}))\n"
        f"sae.save({str(tmp_path)!r}); gsae_ray.load({str(tmp_path)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_stores_process_does_without_torch() -> None:
    """What torch takes would be over the store's budget."""
    code = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\nimport gsae_ray.actors.store_actor"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
