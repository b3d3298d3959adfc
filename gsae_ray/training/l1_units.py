"""Converting λ between conventions: ours, the paper's and those of other libraries.

A convention trains on x' = k·x with the loss m·‖x' − x̂'‖² + λ·‖f'‖₁. Divided by m·k² that is ‖x − x̂‖² + λ/(m·k)·‖f‖₁
on raw activations, so λ/(m·k) is what two conventions have in common. Decoder norms are 1, or the penalty is weighted
by them, which comes to the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of a site's raw activations, which conversions depend on."""

    n: int
    """Coordinates of an activation."""
    mean_square_norm: float
    """E‖x‖²"""
    mean_norm: float | None = None
    """E‖x‖, for the conventions that scale by it."""

    @property
    def rms_norm(self) -> float:
        return math.sqrt(self.mean_square_norm)

    @property
    def required_mean_norm(self) -> float:
        if self.mean_norm is None:
            raise ValueError("this convention scales by E‖x‖: mean_norm is needed")
        return self.mean_norm


UNITS: dict[str, Callable[[Scale], float]] = {
    # name: m·k
    "raw": lambda _: 1.0,
    "sum": lambda x: math.sqrt(x.n) / x.rms_norm,  # ours: E‖x'‖² = n, sums over coordinates
    "paper": lambda x: 1 / x.n,  # raw activations, the mean over coordinates (App. D)
    "paper_baseline": lambda x: x.required_mean_norm / x.n,  # its Pythia and Gemma baselines: also ÷ E‖x‖₂
    "saelens": lambda x: math.sqrt(x.n) / x.required_mean_norm,  # l1_coefficient, expected_average_only_in
    "dictionary_learning": lambda x: 1 / x.rms_norm,  # l1_penalty, E‖x'‖² = 1
}
"""m·k of each convention. SAELens without normalisation of activations is `raw`."""


def convert(l1: float, source: str, target: str, scale: Scale) -> float:
    """A λ given in the convention `source`, in the convention `target`, for activations of that scale.

    >>> convert(4.0, "sum", "dictionary_learning", Scale(n=100, mean_square_norm=7.0))
    0.4
    """
    return l1 / UNITS[source](scale) * UNITS[target](scale)
