"""Where the activations of a sweep come from, as its launch needs to know it. One file a kind."""

from __future__ import annotations

from collections.abc import Callable

from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.sources.activation_files import ActivationFiles
from gsae_ray.driver.sources.base import Source
from gsae_ray.driver.sources.language_model import LanguageModel
from gsae_ray.driver.sources.synthetic import Synthetic


def find_source(sweep: Sweep, say: Callable[[str], None]) -> Source:
    """Looks up where a sweep's activations come from. Reads no data yet.

    Args:
        sweep: as its file has it.
        say: is told what the user should know.

    Raises:
        UserError: it is not there, or has no such sites.
    """
    if sweep.activations is not None:
        return ActivationFiles(sweep, say)
    return Synthetic(sweep, say) if sweep.is_synthetic else LanguageModel(sweep, say)
