"""Whether a trial whose process died is tried again: the one place where that is decided."""

from __future__ import annotations

from collections import Counter

DEATHS_WITHOUT_CHECKPOINT = 5
"""A trial whose process dies as often without saving a new checkpoint in between has failed for good."""


class TrialDeaths:
    """Counts how often the processes of each trial died, and says when that is enough."""

    def __init__(self, limit: int = DEATHS_WITHOUT_CHECKPOINT) -> None:
        self.limit = limit
        self.total: Counter[str] = Counter()
        """Trial -> all deaths of its processes in this session."""
        self._since_checkpoint: dict[str, tuple[int, int]] = {}
        """Trial -> tokens of its newest checkpoint, and the deaths since that was saved."""

    def died(self, trial: str, checkpoint_tokens: int, reason: str) -> str | None:
        """Counts a death.

        Args:
            trial: its name.
            checkpoint_tokens: tokens of its newest checkpoint; 0 where there is none.
            reason: what is known of the death.

        Returns:
            why the trial has failed for good; None where it is to be tried again.
        """
        self.total[trial] += 1
        before, deaths = self._since_checkpoint.get(trial, (-1, 0))
        deaths = deaths + 1 if checkpoint_tokens <= before else 1
        tokens = max(checkpoint_tokens, before)
        self._since_checkpoint[trial] = tokens, deaths
        if deaths < self.limit:
            return None
        return f"its process died {deaths} times without a checkpoint after {tokens:,} tokens: {reason}"
