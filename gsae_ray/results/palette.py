"""Colours and marks of pictures and reports: kinds of SAEs differ in both, so that nobody has to tell colours apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
"""Okabe & Ito's palette (2008), with a grey for its yellow and black, which white and black paper swallow."""


class Mark(NamedTuple):
    """A mark of a point, as the two libraries that draw it name it."""

    matplotlib: str
    path: str
    """As an SVG path within −1 … 1."""


class Style(NamedTuple):
    """How the SAEs of one kind, or the references of one origin, are drawn."""

    colour: str | None
    """None: that of the text, black on white."""
    mark: Mark


MARKS = (
    Mark("o", "M-1,0A1,1,0,1,0,1,0A1,1,0,1,0,-1,0Z"),
    Mark("s", "M-0.9,-0.9H0.9V0.9H-0.9Z"),
    Mark("^", "M0,-1L1,0.8H-1Z"),
    Mark("D", "M0,-1.15L1.15,0L0,1.15L-1.15,0Z"),
    Mark("v", "M0,1L1,-0.8H-1Z"),
    Mark("<", "M-1,0L0.8,-1V1Z"),
    Mark(">", "M1,0L-0.8,-1V1Z"),
    Mark("p", "M0,-1.1L1.05,-0.34L0.65,0.89H-0.65L-1.05,-0.34Z"),
)
"""Of the sweep's own SAEs. One more than there are colours: only the 57th kind looks as the first does."""
REFERENCE_MARKS = (
    Mark("*", "M0,-1.3L0.31,-0.42L1.24,-0.4L0.5,0.16L0.76,1.05L0,0.52L-0.76,1.05L-0.5,0.16L-1.24,-0.4L-0.31,-0.42Z"),
    Mark("X", "M-1,-0.5L-0.5,-1L0,-0.5L0.5,-1L1,-0.5L0.5,0L1,0.5L0.5,1L0,0.5L-0.5,1L-1,0.5L-0.5,0Z"),
    Mark("P", "M-0.35,-1H0.35V-0.35H1V0.35H0.35V1H-0.35V0.35H-1V-0.35H-0.35Z"),
    Mark("h", "M0,-1.1L0.95,-0.55V0.55L0,1.1L-0.95,0.55V-0.55Z"),
    Mark("d", "M0,-1.2L0.65,0L0,1.2L-0.65,0Z"),
)
"""Of references, in the colour of the text."""


def styles(kinds: Iterable[str], origins: Iterable[str] = ()) -> dict[str, Style]:
    """The style of each kind of SAE and of each origin of references, in that order."""
    own = {name: Style(COLOURS[n % len(COLOURS)], MARKS[n % len(MARKS)]) for n, name in enumerate(kinds)}
    others = {name: Style(None, REFERENCE_MARKS[n % len(REFERENCE_MARKS)]) for n, name in enumerate(origins)}
    return {**own, **{name: style for name, style in others.items() if name not in own}}


def log_ticks(low: float, high: float) -> list[float]:
    """Where a log axis over that range has its numbers: three or more, ten or fewer, as round as can be.

    Args:
        low: end of the axis, above 0.
        high: the other end.
    """
    decades = [10.0**n for n in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
    for steps, least in (((1,), 4), ((1, 3), 5), ((1, 2, 5), 3), ((1, 1.5, 2, 3, 4, 5, 6, 8), 3)):
        ticks = [step * decade for decade in decades for step in steps if low <= step * decade <= high]
        if len(ticks) >= least:
            return ticks[:: 1 + (len(ticks) - 1) // 10]
    step = 10.0 ** np.floor(np.log10((high - low) / 2))  # the range is narrow: evenly spaced
    while (count := int(np.floor(high / step) - np.ceil(low / step)) + 1) > 8:
        step *= 2
    first = int(np.ceil(low / step))
    return [float(f"{(first + n) * step:.10g}") for n in range(count)]
