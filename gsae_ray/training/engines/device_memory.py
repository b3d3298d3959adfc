"""Memory on a device that the steps of an engine use again and again."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class DeviceMemory:
    """Tensors by name; what they hold is not defined."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tensors: dict[str, Tensor] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor of that shape."""
        return self._of_size(name, math.prod(shape), math.prod(shape), dtype).view(shape)

    def list(self, name: str, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A vector with a place for each entry; there are places for more, so that it need not grow every time."""
        return self._of_size(name, length, length + length // 4, dtype)

    def _of_size(self, name: str, size: int, room: int, dtype: torch.dtype) -> Tensor:
        tensor = self._tensors.get(name)
        if tensor is None or len(tensor) < size or tensor.dtype != dtype:
            self._tensors.pop(name, None)  # before the new one is made
            del tensor
            tensor = self._tensors[name] = torch.empty(room, dtype=dtype, device=self.device)
        return tensor[:size]

    def clear(self) -> None:
        """Lets the memory go."""
        self._tensors.clear()
