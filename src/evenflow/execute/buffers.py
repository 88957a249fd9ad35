"""Receive buffers, made once and used again and again: as many as the program holds at once, whatever its length."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


class BufferPool:
    """Buffers of one size, each given in the shape of the message that it is to hold.

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
        self._lent: dict[int, Tensor] = {}  # the buffer of each that is out in a smaller shape, by its address

    def reshape(self, shape: tuple[int, ...]) -> None:
        """From now on give buffers of `shape` or less; none may be out. Those of another shape are freed."""
        if shape != self._shape:
            self.empty()
            self._shape = shape

    def empty(self) -> None:
        """Free all buffers; none may be out."""
        assert len(self._free) == self.made, f"{self.made - len(self._free)} buffers of {self._shape} are in use"
        self.made = 0
        self._free.clear()

    def take(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """A buffer that nobody else holds; of a `shape` with fewer numbers, the beginning of one."""
        whole = self._free.pop() if self._free else self._make()
        if shape is None or shape == self._shape:
            return whole
        part = whole.view(-1)[: prod(shape)].view(shape)
        self._lent[part.data_ptr()] = whole
        return part

    def _make(self) -> Tensor:
        assert self.made < self.capacity, f"the program holds {self.capacity} received tensors at most, not one more"
        self.made += 1
        return torch.empty(self._shape, dtype=self.dtype, device=self.device)

    def give_back(self, buffer: Tensor) -> None:
        """Return a buffer; its content may be overwritten from now on."""
        self._free.append(self._lent.pop(buffer.data_ptr(), buffer))
