"""Work on a producer besides making blocks. The store and the pool pass it on and never look inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class ProducerTask(Protocol):
    """A task that a producer runs between two blocks, such as the evaluation of an SAE.

    Adding a kind of task is one class, which is picklable: whatever has a client of the store may have it run. Where a
    producer dies meanwhile, another runs the task from its beginning.
    """

    @property
    def name(self) -> str:
        """What it does, in a word, for messages."""

    def run(self, source: Any, cache: dict[str, Any], say: Callable[[str], None]) -> Any:
        """Does the work, in a producer's process.

        Args:
            source: the producer's `ActivationSource`.
            cache: what tasks leave for those after them on the same producer, by keys of their own.
            say: tells the user a line. One that was told before, from whichever producer, is not told again.

        Returns:
            plain data or numpy arrays: they pass through the store's process, which has no torch.

        Raises:
            NumericError: numbers are not finite, and would not be on another producer.
        """
