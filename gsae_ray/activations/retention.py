"""What the store keeps of the blocks that were produced, and what that costs in forward passes."""

from __future__ import annotations

from collections.abc import Sequence

WINDOW = 2
"""Blocks that running trials need at once: the one that they read and the next, which is made meanwhile."""


def kept_blocks(blocks: int, budget: int) -> int:
    """How many of a stream's blocks stay for trials that start late: all if they fit, else all but the window."""
    return blocks if blocks <= budget else max(0, budget - WINDOW)


def forward_ratio(waves: Sequence[int], budget: int) -> float:
    """Blocks through the model ÷ distinct blocks (law 3): every wave computes what was not kept.

    Beyond the budget a prefix of the stream is kept. The window passes over the rest and ends on the last blocks: the
    last wave finds these too, since it gives up the prefix behind it instead. So for W > 1 waves of N blocks and
    4 <= budget < N the ratio is 1 + (W − 1)(1 − (budget − 2) ÷ N) − 2 ÷ N.

    It is less where a budget is one block short (each wave finds one more), where later waves are shorter, and where
    all trials of a site end before others start: blocks that are made after that are smaller.

    Args:
        waves: blocks that the longest trial of each wave reads.
        budget: whole blocks that the store can hold, at all sites.
    """
    computed = distinct = before = 0
    for number, blocks in enumerate(waves, start=1):
        held = kept_blocks(distinct, budget)
        if held < distinct and number == len(waves) and blocks >= before:
            held += min(held, WINDOW)  # behind a prefix of one block there is room for one
        computed += max(0, blocks - held)
        distinct, before = max(distinct, blocks), blocks
    return computed / distinct
