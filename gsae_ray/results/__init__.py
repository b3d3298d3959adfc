"""What came out of a sweep, for notebooks: the frontier, the best SAE, comparisons, intervals, pictures.

Names are imported at first use: `curves` and `intervals` need numpy only.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsae_ray.results.best import choose
    from gsae_ray.results.compared import Comparison
    from gsae_ray.results.comparison import check_recipes, check_tokens, l0_ratio, sequences
    from gsae_ray.results.seeds import over_seeds

__all__ = ["Comparison", "check_recipes", "check_tokens", "choose", "l0_ratio", "over_seeds", "sequences"]

_MODULES = {
    "Comparison": "compared",
    "check_recipes": "comparison",
    "check_tokens": "comparison",
    "choose": "best",
    "l0_ratio": "comparison",
    "over_seeds": "seeds",
    "sequences": "comparison",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"gsae_ray.results.{_MODULES[name]}"), name)
    if importlib.util.find_spec(f"gsae_ray.results.{name}") is not None:
        return importlib.import_module(f"gsae_ray.results.{name}")
    raise AttributeError(f"module 'gsae_ray.results' has no attribute {name!r}")
