"""The statistics of block 0 at one site. The store passes them on, so this module does without torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from numpy.typing import NDArray

TOP_SHARE = 1e-3
"""Share of the rows that `Norms.sink_share` covers."""
NOTICED_SINK_SHARE = 0.2
"""Users are told of a larger `Norms.sink_share`."""
SHOWN_POSITIONS = 8


@dataclasses.dataclass(frozen=True)
class Norms:
    """Norms of all rows of block 0 at one site, including rows that take no part in training and evaluation."""

    rows: int
    median_square_norm: float
    """Median of ‖x‖²."""
    limit: float
    """Rows whose ‖x‖² exceeds it take no part; infinite: all rows do."""
    left_out: int
    """Rows above `limit`."""
    sink_share: float
    """Share of Σ‖x‖² that the largest 0.1 % of the rows (at least one row) hold."""
    sink_positions: tuple[int, ...]
    """Positions, in their contexts, of the largest rows that together hold nine tenths of `sink_share`."""

    def notice(self, site: str) -> str | None:
        """A line on where the largest rows lie and what can be done; None where they do not matter."""
        if not self.sink_share > NOTICED_SINK_SHARE:
            return None
        shown = ", ".join(str(position) for position in self.sink_positions[:SHOWN_POSITIONS])
        if (more := len(self.sink_positions) - SHOWN_POSITIONS) > 0:
            shown += f" and {more} more"
        what = (
            f"{site}: the largest {TOP_SHARE:.1%} of the rows hold {self.sink_share:.0%} of E||x||^2 (attention sinks, "
            f"at position{'s' if len(self.sink_positions) > 1 else ''} {shown} of their contexts)"
        )
        if self.left_out:
            return f"{what}; {self.left_out:,} of {self.rows:,} rows are above dataset.max_norm and take no part"
        return (
            f"{what}: scale, losses, FVU and gamma are those of these rows; dataset.max_norm (default: 10) leaves "
            "them out where it is low enough, dataset.skip_positions drops the first positions"
        )


@dataclasses.dataclass(frozen=True)
class SiteStatistics:
    """Statistics of block 0 at one site, from which every trial at the site starts."""

    mean: NDArray[Any]
    """Mean of the rows that take part, float32 [n]."""
    mean_square_norm: float
    """E‖x‖² of the rows that take part."""
    norms: Norms
    """Norms of all rows."""
