"""Tensors of a device through host memory: how ranks that share one GPU talk, which NCCL refuses.

A message is copied into a buffer in host memory, which a transport for host memory sends or receives. The buffers are
used again: there are as many as were ever under way at once, however many microbatches a step has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evenflow.runtime.transport import Transfer, Transport


class StagedTransport:
    """Sends and receives tensors of `device` through a transport for host memory.

    A send returns once the tensor is made and copied, since the other transport reads the copy from then on; a receive
    is copied to the device when it is waited for. Both copies hold up this host alone: the ranks that share the
    device work on meanwhile.

    Args:
        host: carries the buffers, and sums.
        device: where the tensors are; with `cpu` they pass through buffers all the same.
    """

    def __init__(self, host: Transport, device: torch.device) -> None:
        self._host = host
        self.buffers = HostBuffers(device)

    def send(self, tensor: Tensor, rank: int, tag: int) -> Transfer:
        """Copy to host memory, then start sending."""
        lent = self.buffers.take(tensor)
        lent.tensor.copy_(tensor)  # returns once it is done: the copy waits for the stream that makes the tensor
        return _Staged(self._host.send(lent.tensor, rank, tag), lent, self.buffers, None)

    def receive(self, buffer: Tensor, rank: int, tag: int) -> Transfer:
        """Start receiving into host memory; `buffer` is filled once the transfer was waited for."""
        lent = self.buffers.take(buffer)
        return _Staged(self._host.receive(lent.tensor, rank, tag), lent, self.buffers, buffer)

    def sum(self, tensor: Tensor) -> None:
        """Sum over all ranks; the tensor is in host memory."""
        self._host.sum(tensor)

    def close(self) -> None:
        """Part from the other ranks."""
        self._host.close()


class _Staged:
    """A transfer of a lent buffer; the buffer is given back once it was waited for."""

    def __init__(self, transfer: Transfer, lent: Lent, buffers: HostBuffers, target: Tensor | None) -> None:
        self._transfer = transfer
        self._lent: Lent | None = lent
        self._buffers = buffers
        self._target = target

    def wait(self) -> None:
        """Return once it is complete, and copied to the device where it was received."""
        if self._lent is None:
            return
        self._transfer.wait()
        if self._target is not None:
            self._target.copy_(self._lent.tensor)  # returns once it is done, so the buffer is free again
        self._buffers.give_back(self._lent)
        self._lent = self._target = None


@dataclass(frozen=True, slots=True)
class Lent:
    """A buffer as bytes [bytes of the largest message it has held], and seen as the message that it holds."""

    flat: Tensor
    tensor: Tensor


class HostBuffers:
    """Buffers in host memory, pinned for a GPU, of any shape: each is lent to one message at a time.

    Attributes:
        made: how many there are.
    """

    def __init__(self, device: torch.device) -> None:
        self.made = 0
        self._pinned = device.type == "cuda"
        self._free: list[Tensor] = []

    def take(self, like: Tensor) -> Lent:
        """A buffer of the shape and type of `like` that nobody else holds.

        One that is too small is replaced by a larger one, so longer sequences leave no old buffers behind.
        """
        if self._free:
            flat = self._free.pop()
        else:
            flat = torch.empty(0, dtype=torch.uint8)
            self.made += 1
        if flat.numel() < like.nbytes:
            flat = torch.empty(like.nbytes, dtype=torch.uint8, pin_memory=self._pinned)
        return Lent(flat, flat[: like.nbytes].view(like.dtype).view(like.shape))

    def give_back(self, lent: Lent) -> None:
        """Return a buffer; it may be overwritten from now on."""
        self._free.append(lent.flat)
