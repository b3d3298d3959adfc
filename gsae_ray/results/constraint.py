"""What the best SAE is to be. Imports nothing that takes time: commands check it before all else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from gsae_ray.errors import UserError


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What the best SAE is to be. Exactly one of the first three is given."""

    max_l0: float | None = None
    """The highest quality with at most this L0."""
    min_loss_recovered: float | None = None
    """The lowest L0 that recovers at least this; with `by`, the highest quality."""
    knee: bool = False
    """The point of the frontier of L0 and quality that is farthest above the straight line between its ends, log L0 and
    quality being scaled to that (`curves.above_chord`)."""
    by: str | None = None
    """The column that is the quality; default: loss recovered, without a language model explained variance."""

    def check(self) -> None:
        """Refuses none and several, and what nothing can meet.

        Raises:
            UserError: so it is.
        """
        if (self.max_l0 is not None) + (self.min_loss_recovered is not None) + self.knee != 1:
            raise UserError("best: give either max_l0 (e.g. 40) or min_loss_recovered (e.g. 0.95), or knee, or alias")
        if self.max_l0 is not None and not self.max_l0 > 0:  # NaN, too
            raise UserError(f"max_l0: {self.max_l0:g} is no number of active features; give one above 0, e.g. 40")
        if self.min_loss_recovered is not None and math.isnan(self.min_loss_recovered):
            raise UserError("min_loss_recovered: NaN is no fraction; give one, e.g. 0.95")


def check_alone(alias: str, beside: Mapping[str, object]) -> None:
    """Refuses what would choose among SAEs beside an alias, which names one.

    Raises:
        UserError: something is given.
    """
    given = [name for name, value in beside.items() if value is not None and value is not False]
    if given:
        raise UserError(f"alias: {alias} names one SAE of a site, so leave {' and '.join(given)} out")
