"""Receive buffers, made once and used again and again: as many as the program holds at once, whatever its length."""

from __future__ import annotations

import torch
from torch import Tensor


class BufferPool:
    """Buffers of one shape.

    Args:
        capacity: how many the program ever holds at once.
        dtype: of their elements.
        device: where they are.

    Attributes:
        made: how many there are.
    """

    def __init__(self, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.capacity = capacity
        self.dtype = dtype
        self.device = device
        self.made = 0
        self._shape: tuple[int, ...] = ()
        self._free: list[Tensor] = []

    def reshape(self, shape: tuple[int, ...]) -> None:
        """From now on give buffers of `shape`; none may be out. Those of another shape are freed."""
        if shape == self._shape:
            return
        assert len(self._free) == self.made, f"{self.made - len(self._free)} buffers of {self._shape} are in use"
        self._shape = shape
        self.made = 0
        self._free.clear()

    def take(self) -> Tensor:
        """A buffer that nobody else holds."""
        if self._free:
            return self._free.pop()
        assert self.made < self.capacity, f"the program holds {self.capacity} received tensors at most, not one more"
        self.made += 1
        return torch.empty(self._shape, dtype=self.dtype, device=self.device)

    def give_back(self, buffer: Tensor) -> None:
        """Return a buffer; its content may be overwritten from now on."""
        self._free.append(buffer)
