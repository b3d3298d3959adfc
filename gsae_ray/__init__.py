"""gsae-ray: Ray-distributed sweeps of sparse autoencoders that share one pass over the language model.

    result = gsae_ray.run("sweeps/quickstart.yaml")
    rows = gsae_ray.frontier("quickstart")
    sae = gsae_ray.best("quickstart", site="blocks.2.hook_resid_post", max_l0=40)
    job = gsae_ray.submit("sweeps/quickstart.yaml", address="http://127.0.0.1:8265")

Names are imported at first use, so that loading an SAE needs neither Ray nor MLflow.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from gsae_ray.version import __version__

if TYPE_CHECKING:  # for type checkers and editors, what `_MODULES` says
    from gsae_ray.config.load import load_sweep as load_sweep
    from gsae_ray.config.sweep import Sweep as Sweep
    from gsae_ray.driver.collect import collect as collect
    from gsae_ray.driver.evaluate import evaluate as evaluate
    from gsae_ray.driver.launch import SweepResult as SweepResult
    from gsae_ray.driver.launch import run as run
    from gsae_ray.errors import UserError as UserError
    from gsae_ray.jobs.job import Job as Job
    from gsae_ray.jobs.submit import submit as submit
    from gsae_ray.results.best import best as best
    from gsae_ray.results.best import candidates as candidates
    from gsae_ray.results.compare import compare as compare
    from gsae_ray.results.frontier import frontier as frontier
    from gsae_ray.results.picture import plot as plot
    from gsae_ray.results.push import push as push
    from gsae_ray.results.report import report as report
    from gsae_ray.saes import SAE as SAE
    from gsae_ray.saes import load as load
    from gsae_ray.saes.export import export as export

_MODULES = {
    "Job": "jobs.job",
    "SAE": "saes",
    "Sweep": "config.sweep",
    "SweepResult": "driver.launch",
    "UserError": "errors",
    "best": "results.best",
    "candidates": "results.best",
    "collect": "driver.collect",
    "compare": "results.compare",
    "evaluate": "driver.evaluate",
    "export": "saes.export",
    "frontier": "results.frontier",
    "load": "saes",
    "load_sweep": "config.load",
    "plot": "results.picture",
    "push": "results.push",
    "report": "results.report",
    "run": "driver.launch",
    "submit": "jobs.submit",
}
"""Public name -> the module that has it."""

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"gsae_ray.{_MODULES[name]}"), name)
    if importlib.util.find_spec(f"gsae_ray.{name}") is not None:  # `gsae_ray.results.over_seeds` needs one import only
        return importlib.import_module(f"gsae_ray.{name}")
    raise AttributeError(f"module 'gsae_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
