"""What the steps of an engine share: threads, and memory that is used again and again."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


class Workspace:
    """Threads that go through ranges of rows or features, and arrays by name."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        # Its threads use one of PyTorch's each.
        self._pool = ThreadPoolExecutor(threads - 1, "engine", torch.set_num_threads, (1,)) if threads > 1 else None
        self._arrays: dict[str, Array] = {}

    def over(self, parts: int | Array, function: Callable[..., None], *arguments: Any) -> None:
        """Calls a function for ranges of rows or features, in parallel.

        Args:
            parts: how many there are, or the index of each one's first active entry: then ranges have as many of those.
            function: what takes the beginning and the end of a range, and the arguments.
            *arguments: the same for all ranges.
        """
        n = parts if isinstance(parts, int) else len(parts) - 1
        if self._pool is None or n == 1:
            function(0, n, *arguments)
            return
        shares = np.arange(1, self.threads) / self.threads
        if isinstance(parts, int):
            inner = [round(n * share) for share in shares]
        else:
            load = parts + np.arange(n + 1)  # one without entries costs something too
            inner = np.searchsorted(load, load[-1] * shares).tolist()
        bounds = [0, *inner, n]
        others = [
            self._pool.submit(function, first, end, *arguments)
            for first, end in zip(bounds[1:-1], bounds[2:], strict=True)
        ]
        function(0, bounds[1], *arguments)
        for other in others:
            other.result()

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """An array of that shape; what it holds is not defined. Fewer rows than before are the first ones of it."""
        array = self._arrays.get(name)
        if array is None or array.shape[1:] != shape[1:] or len(array) < shape[0]:
            array = self._arrays[name] = aligned(shape, dtype)
        assert array.dtype == dtype, f"{name}: one name for two arrays"
        return array if len(array) == shape[0] else array[: shape[0]]

    def list(self, name: str, length: int, dtype: Any = np.float32) -> Array:
        """The beginning of an array that grows as needed, for as many entries."""
        array = self._arrays.get(name)
        if array is None or len(array) < length or array.dtype != dtype:
            array = self._arrays[name] = aligned((length + length // 4,), dtype)
        return array[:length]

    def clear(self) -> None:
        """Lets the memory go."""
        self._arrays.clear()


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array that begins on a cache line, as PyTorch's memory does and NumPy's does not."""
    return (
        torch.empty(math.prod(shape) * np.dtype(dtype).itemsize, dtype=torch.uint8).numpy().view(dtype).reshape(shape)
    )
