"""A process group for each directed edge: how tensors travel where messages have no tags, as with NCCL.

Between two groups nothing is ordered, and within one the n-th send meets the n-th receive. Lowering puts the receives
of a directed edge in the order of its sends, and `verify` proves it, so order alone says which message is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from evenflow.errors import PeerLostError, first_line
from evenflow.runtime.transport import GlooTransfer, Transfer, Transport

Edge = tuple[int, int]


def edges_of(stage_rank: Sequence[int]) -> tuple[Edge, ...]:
    """The directed edges (from rank, to rank) that tensors of these stages travel on, sorted."""
    neighbours = {(own, after) for own, after in pairwise(stage_rank) if own != after}
    return tuple(sorted(neighbours | {(after, own) for own, after in neighbours}))


class EdgeGroupTransport:
    """Sends and receives through a process group of two for each directed edge; sums through the ranks' own transport.

    With NCCL the transfers run in streams of their own: `wait` then holds up the current stream, not the host, and a
    lost peer is noticed by NCCL's watchdog at the timeout, which ends the process.
    """

    def __init__(
        self,
        ranks: Transport,
        rank: int,
        edges: Sequence[Edge],
        backend: str,
        device: torch.device,
        timeout_s: float,
    ) -> None:
        """Make all groups, and send one number over each edge of this rank, in the same order everywhere.

        The number makes NCCL connect now. At its first real message it would wait for the other end, and two ranks
        that begin with different edges would wait for each other for ever.

        Args:
            ranks: how all ranks have met already (torch.distributed is initialised); it sums.
            rank: this rank.
            edges: all edges of the job, those of other ranks included.
            backend: of the groups, `nccl` or `gloo`.
            device: where the tensors are.
            timeout_s: how long a rank may wait for another.

        Raises:
            PeerLostError: another rank did not come.
        """
        self._ranks = ranks
        self._rank = rank
        own = timedelta(seconds=timeout_s)
        try:
            # Every rank makes every group. With use_local_synchronization torch names a group by how many groups this
            # process has made, so the two ends of an edge would wait under different names from three ranks on.
            self._groups = {edge: dist.new_group(list(edge), own, backend) for edge in sorted(edges)}
        except RuntimeError as error:
            raise PeerLostError(f"the ranks did not meet on their edges: {first_line(error)}") from error
        number = torch.zeros(1, device=device)
        for sender, receiver in self._groups:
            if rank == sender:
                self.send(number, receiver, 0).wait()
            elif rank == receiver:
                self.receive(number, sender, 0).wait()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def send(self, tensor: Tensor, rank: int, tag: int) -> Transfer:  # noqa: ARG002 - edges are ordered
        """Start sending."""
        try:
            work = dist.isend(tensor, rank, group=self._groups[self._rank, rank])
        except RuntimeError as error:
            raise PeerLostError(f"lost the connection to rank {rank}: {first_line(error)}") from error
        assert work is not None, "this rank is in the edge's group"
        return GlooTransfer(work, tensor)

    def receive(self, buffer: Tensor, rank: int, tag: int) -> Transfer:  # noqa: ARG002 - edges are ordered
        """Start receiving."""
        try:
            work = dist.irecv(buffer, rank, group=self._groups[rank, self._rank])
        except RuntimeError as error:
            raise PeerLostError(f"lost the connection to rank {rank}: {first_line(error)}") from error
        assert work is not None, "this rank is in the edge's group"
        return GlooTransfer(work, buffer)

    def sum(self, tensor: Tensor) -> None:
        """Sum over all ranks; the tensor is in host memory."""
        self._ranks.sum(tensor)

    def close(self) -> None:
        """Leave all groups."""
        self._ranks.close()
