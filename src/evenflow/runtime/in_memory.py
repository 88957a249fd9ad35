"""A transport between threads of one process.

It reads no tags: on every directed edge the n-th send meets the n-th receive, as it is with NCCL, so whatever runs on
it keeps the order that `verify` proves. A send is complete only once its receive has come, as if nothing were
buffered on the way.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evenflow.errors import PeerLostError
from evenflow.runtime.transport import Transfer

Edge = tuple[int, int]


@dataclass(slots=True)
class _Message:
    """One end of a transfer."""

    tensor: Tensor
    done: bool = False


@dataclass
class InMemoryNetwork:
    """What the ranks of one process share.

    Attributes:
        ranks: how many there are.
        timeout_s: how long one may wait for another.
    """

    ranks: int
    timeout_s: float = 60.0
    _sent: defaultdict[Edge, deque[_Message]] = field(default_factory=lambda: defaultdict(deque))
    _expected: defaultdict[Edge, deque[_Message]] = field(default_factory=lambda: defaultdict(deque))
    _sums: list[Tensor] = field(default_factory=list)
    _gone: set[int] = field(default_factory=set)
    _rounds: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def transport(self, rank: int) -> InMemoryTransport:
        """The transport of one rank."""
        return InMemoryTransport(self, rank)

    def _post(self, edge: Edge, message: _Message, sends: bool) -> Transfer:
        with self._changed:
            (self._sent if sends else self._expected)[edge].append(message)
            while self._sent[edge] and self._expected[edge]:
                sent, expected = self._sent[edge].popleft(), self._expected[edge].popleft()
                expected.tensor.copy_(sent.tensor)
                sent.done = expected.done = True
            self._changed.notify_all()
        return _InMemoryTransfer(self, message, edge)

    def _wait(self, is_done: Callable[[], bool], peers: Iterable[int], what: str) -> None:
        with self._changed:
            in_time = self._changed.wait_for(lambda: is_done() or self._gone.intersection(peers), self.timeout_s)
            if is_done():
                return
            lost = self._gone.intersection(peers)
            raise PeerLostError(f"rank {min(lost)} is gone" if in_time else f"{what} for {self.timeout_s:g} s")

    def _leave(self, rank: int) -> None:
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()

    def _sum(self, tensor: Tensor) -> None:
        with self._changed:
            own_round = self._rounds
            self._sums.append(tensor)
            if len(self._sums) == self.ranks:
                total = torch.stack(self._sums).sum(0)
                for other in self._sums:
                    other.copy_(total)
                self._sums.clear()
                self._rounds += 1
                self._changed.notify_all()
        self._wait(lambda: self._rounds > own_round, range(self.ranks), "not all ranks came to the sum")


class InMemoryTransport:
    """One rank's end of an `InMemoryNetwork`."""

    def __init__(self, network: InMemoryNetwork, rank: int) -> None:
        self.network = network
        self.rank = rank

    def send(self, tensor: Tensor, rank: int, tag: int) -> Transfer:  # noqa: ARG002 - edges are ordered
        """Start sending."""
        return self.network._post((self.rank, rank), _Message(tensor), sends=True)

    def receive(self, buffer: Tensor, rank: int, tag: int) -> Transfer:  # noqa: ARG002 - edges are ordered
        """Start receiving."""
        return self.network._post((rank, self.rank), _Message(buffer), sends=False)

    def sum(self, tensor: Tensor) -> None:
        """Sum over all ranks, in the order in which they come."""
        self.network._sum(tensor)

    def close(self) -> None:
        """Part from the others: whoever waits for this rank, now or later, has lost it."""
        self.network._leave(self.rank)


@dataclass(frozen=True, slots=True)
class _InMemoryTransfer:
    network: InMemoryNetwork
    message: _Message
    edge: Edge

    def wait(self) -> None:
        """Return once both ends are there."""
        what = f"rank {self.edge[0]} and rank {self.edge[1]} did not meet"
        self.network._wait(lambda: self.message.done, self.edge, what)
