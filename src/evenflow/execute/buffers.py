"""Receive buffers, used again and again: as many as the program holds at once, however many microbatches there are."""

from __future__ import annotations

import torch
from torch import Tensor


class BufferPool:
    """Buffers of one shape on one device.

    Attributes:
        made: how many were ever made.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.made = 0
        self._free: list[Tensor] = []

    def take(self) -> Tensor:
        """A buffer that nobody else holds."""
        if self._free:
            return self._free.pop()
        self.made += 1
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def give_back(self, buffer: Tensor) -> None:
        """Return a buffer; its content may be overwritten from now on."""
        self._free.append(buffer)
