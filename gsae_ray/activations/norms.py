"""Norms of rows: on real models a few rows (attention sinks) hold most of E‖x‖². Those above a limit take no part.

The store's process loads this module, so torch is imported late.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TOP = 1e-3
"""Share of the rows that `Norms.sink_share` looks at."""
TOLD = 0.2
"""A larger share is told."""
SHOWN_POSITIONS = 8


def square_norms(x_Rn: Tensor) -> Tensor:
    """‖x‖² of each row [R], in float64: of what is finite nothing overflows."""
    import torch

    return torch.linalg.vector_norm(x_Rn, dim=1, dtype=torch.float64).square()


def limit(square_norms_R: Tensor, max_norm: float | None) -> float:
    """The ‖x‖² above which a row takes no part: (`max_norm` × the median norm)²; infinite where all do."""
    median = square_norms_R.median().item()
    return max_norm**2 * median if max_norm is not None and median > 0 else math.inf


def takes_part(square_norms_R: Tensor, limit: float) -> Tensor:
    """Which rows [R] do. What is not finite is no massive row but an error, which is to be seen."""
    return (square_norms_R <= limit) | ~square_norms_R.isfinite()


@dataclasses.dataclass(frozen=True)
class Norms:
    """Of all rows of block 0 at one site, those that take no part among them."""

    rows: int
    median_square_norm: float
    """Of ‖x‖²."""
    limit: float
    """Rows whose ‖x‖² is above it take no part; infinite: all do."""
    left_out: int
    """Rows above it."""
    sink_share: float
    """What of E‖x‖² the largest 0.1 % of the rows (at least one) hold."""
    sink_positions: tuple[int, ...]
    """Where in their contexts the largest of these rows lie that hold nine tenths of that."""

    @classmethod
    def of(cls, square_norms_R: Tensor, position_R: Tensor, max_norm: float | None) -> Norms:
        """
        Args:
            square_norms_R: float64, on the CPU.
            position_R: where in its context each row lies.
        """
        rows = len(square_norms_R)
        top_K, indices_K = square_norms_R.topk(max(1, int(TOP * rows)))
        held_K, total = top_K.cumsum(0), square_norms_R.sum().item()
        most = int((held_K < 0.9 * held_K[-1]).sum()) + 1
        above = limit(square_norms_R, max_norm)
        return cls(
            rows=rows,
            median_square_norm=square_norms_R.median().item(),
            limit=above,
            left_out=int((~takes_part(square_norms_R, above)).sum()),
            sink_share=held_K[-1].item() / total if total else 0.0,
            sink_positions=tuple(sorted(set(position_R[indices_K[:most]].tolist()))),
        )

    def notice(self, site: str) -> str | None:
        """Where the largest rows lie and what can be done, in a line; None where they do not matter."""
        if not self.sink_share > TOLD:
            return None
        shown = ", ".join(str(position) for position in self.sink_positions[:SHOWN_POSITIONS])
        if (more := len(self.sink_positions) - SHOWN_POSITIONS) > 0:
            shown += f" and {more} more"
        what = (
            f"{site}: the largest {TOP:.1%} of the rows hold {self.sink_share:.0%} of E||x||^2 (attention sinks, at "
            f"position{'s' if len(self.sink_positions) > 1 else ''} {shown} of their contexts)"
        )
        if self.left_out:
            return f"{what}; {self.left_out:,} of {self.rows:,} rows are above dataset.max_norm and take no part"
        return (
            f"{what}: scale, losses, FVU and gamma are those of these rows; dataset.max_norm (default: 10) leaves "
            "them out where it is low enough, dataset.skip_positions drops the first positions"
        )
