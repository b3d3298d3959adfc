"""What of a finished SAE can be shifted so that more or fewer features fire, while its weights stay."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor


class Thresholds:
    """The part of `SAE` that the calibration of a trial with `target_l0` asks; an architecture may do without."""

    has_thresholds: ClassVar[bool] = False
    """Whether it has the two methods below; without them nothing is calibrated in the end."""

    def margins(self, x_BD: Tensor) -> Tensor:
        """How far activations [..., d_sae] are above the point where they turn on, as lengths of f_i d_i.

        Features with a positive one fire. −∞: no shift would turn it on.
        """
        raise NotImplementedError

    def raise_thresholds(self, by: float) -> None:
        """Makes those features fire whose margin was above `by`, which may be negative, and no others."""
        raise NotImplementedError
