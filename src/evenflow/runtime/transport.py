"""How tensors travel between ranks: one small interface, so that the executor knows no library's calls."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

from evenflow.errors import PeerLostError, first_line
from evenflow.runtime.rendezvous import bind_gloo, meeting_store


class Transfer(Protocol):
    """A send or receive under way."""

    def wait(self) -> None:
        """Return once it is complete.

        Raises:
            PeerLostError: the other end is gone, or silent for too long.
        """


class Transport(Protocol):
    """Point-to-point transfers that return at once, and one sum over all ranks."""

    def send(self, tensor: Tensor, rank: int, tag: int) -> Transfer:
        """Start sending `tensor` to `rank`; it must not change until the transfer is complete."""

    def receive(self, buffer: Tensor, rank: int, tag: int) -> Transfer:
        """Start receiving from `rank` into `buffer`."""

    def sum(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all ranks."""

    def close(self) -> None:
        """Part from the other ranks."""


class AloneTransport:
    """The transport of a single rank, which has nobody to talk to."""

    def send(self, tensor: Tensor, rank: int, tag: int) -> Transfer:
        """Never called: a program of one rank has no sends."""
        raise AssertionError(f"a single rank sends nothing, not {tensor.shape} to rank {rank} with tag {tag}")

    def receive(self, buffer: Tensor, rank: int, tag: int) -> Transfer:
        """Never called: a program of one rank has no receives."""
        raise AssertionError(f"a single rank receives nothing, not {buffer.shape} from rank {rank} with tag {tag}")

    def sum(self, tensor: Tensor) -> None:
        """A sum over one rank is what it was."""

    def close(self) -> None:
        """Nothing to part from."""


class GlooTransfer:
    """A gloo send or receive; keeps the tensor, and what gloo holds of it, until it is complete.

    Args:
        work: torch's handle of it.
        tensor: what is sent or filled.
        timeout: how long it may be waited for; by default as long as its group was made with.
    """

    def __init__(self, work: dist.Work, tensor: Tensor, timeout: timedelta | None = None) -> None:
        self._under_way: tuple[dist.Work, Tensor] | None = work, tensor
        self._timeout = () if timeout is None else (timeout,)

    def wait(self) -> None:
        """Return once it is complete."""
        if self._under_way is None:
            return
        (work, _), self._under_way = self._under_way, None
        try:
            work.wait(*self._timeout)
        except RuntimeError as error:
            raise PeerLostError(f"lost the connection to another rank: {first_line(error)}") from error


class GlooTransport:
    """torch.distributed over gloo: TCP, with a tag on every message.

    Attributes:
        timeout: how long a send or receive that starts from now on may be waited for.
    """

    def __init__(self, rank: int, ranks: int, rendezvous: str, timeout_s: float) -> None:
        """Meet the other ranks; on one host all sockets stay on the loopback interface.

        Raises:
            PeerLostError: they did not all come in time.
        """
        bind_gloo(rendezvous)
        self.timeout = timedelta(seconds=timeout_s)
        try:
            dist.init_process_group(
                "gloo",
                store=meeting_store(rendezvous, ranks, timeout_s),
                rank=rank,
                world_size=ranks,
                timeout=self.timeout,
            )
        except RuntimeError as error:
            raise PeerLostError(f"the ranks did not meet: {first_line(error)}") from error
        # Asked directly: what `isend` and `irecv` look up each time is a fifth of what a small message costs.
        self._group = dist.distributed_c10d._get_default_group()

    def send(self, tensor: Tensor, rank: int, tag: int) -> Transfer:
        """Start sending."""
        try:
            work = self._group.send([tensor], rank, tag)
        except RuntimeError as error:
            raise PeerLostError(f"lost the connection to rank {rank}: {first_line(error)}") from error
        return GlooTransfer(work, tensor, self.timeout)

    def receive(self, buffer: Tensor, rank: int, tag: int) -> Transfer:
        """Start receiving."""
        try:
            work = self._group.recv([buffer], rank, tag)
        except RuntimeError as error:
            raise PeerLostError(f"lost the connection to rank {rank}: {first_line(error)}") from error
        return GlooTransfer(work, buffer, self.timeout)

    def sum(self, tensor: Tensor) -> None:
        """Sum over all ranks."""
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise PeerLostError(f"lost the connection to another rank: {first_line(error)}") from error

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()


def connect(rank: int, ranks: int, rendezvous: str | Path, timeout_s: float) -> Transport:
    """The transport of `rank` among `ranks`, which meet through a file or through torchrun's store."""
    return AloneTransport() if ranks == 1 else GlooTransport(rank, ranks, str(rendezvous), timeout_s)
