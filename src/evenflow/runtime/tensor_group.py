"""The processes that share out the tensors of one stage (its place on the tp axis), as its layers see them.

Layers ask for two things: sums and collections. Who answers is a process group in a run, threads in a check, and nobody
where a stage is only traced.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from evenflow.runtime.lost import naming_the_lost
from evenflow.spec import Combined

_PATIENCE_S = 120.0  # of threads for each other: layers that ask for different things would wait for ever


class TensorGroup(Protocol):
    """Those that hold one stage together; every call is made by all of them, in the same order."""

    @property
    def size(self) -> int:
        """How many they are."""

    @property
    def index(self) -> int:
        """Which one this is."""

    def add(self, tensor: Tensor) -> None:
        """Sum a contiguous tensor over all, in place: the same bits everywhere."""

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all, which have one shape, by index."""


class ProcessTensorGroup:
    """Processes, each with its own part.

    Args:
        group: their process group. One of gloo's carries host memory, so tensors of a GPU go through it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._through_host = dist.get_backend(group) == "gloo"
        self.size = dist.get_world_size(group)
        self.index = dist.get_rank(group)

    def add(self, tensor: Tensor) -> None:
        """Sum over all, in place.

        Raises:
            PeerLostError: one of them is gone.
        """
        carried = tensor.cpu() if self._through_host else tensor.to("cuda")
        with naming_the_lost():
            dist.all_reduce(carried, group=self._group)
        if carried is not tensor:
            tensor.copy_(carried)

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all.

        Raises:
            PeerLostError: one of them is gone.
        """
        carried = tensor.cpu() if self._through_host else tensor.to("cuda")
        found = [torch.empty_like(carried) for _ in range(self.size)]
        with naming_the_lost():
            dist.all_gather(found, carried, group=self._group)
        return [own.to(tensor.device) for own in found]


@dataclass
class ImaginedTensorGroup:
    """Nobody: tensors come back in the right shapes, and what was asked for is noted.

    Attributes:
        size: how many there would be.
        index: which one this would be.
        asked: all that was asked for so far.
        marked: how much of that was asked for before the mark.
    """

    size: int
    index: int = 0
    asked: list[Combined] = field(default_factory=list)
    marked: int = 0

    def mark(self) -> None:
        """Tell what comes from now on from what was before."""
        self.marked = len(self.asked)

    def add(self, tensor: Tensor) -> None:
        """Leave it as it is."""
        self.asked.append(Combined("add", tensor.nbytes))

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """Tensors of its shape, in one piece of memory: what is traced is then alike for groups of any size."""
        self.asked.append(Combined("collect", tensor.nbytes))
        return list(tensor.new_empty((self.size, *tensor.shape)).unbind())


class ThreadTensorGroup:
    """One thread of several that share out a stage within one process.

    Args:
        meeting: where they meet.
        index: which one this is.
    """

    def __init__(self, meeting: ThreadMeeting, index: int) -> None:
        self._meeting = meeting
        self.size = meeting.size
        self.index = index

    def add(self, tensor: Tensor) -> None:
        """Sum over all threads, in the order of their indices."""
        found = self.collect(tensor)
        total = found[0].clone()
        for other in found[1:]:
            total += other
        tensor.copy_(total)

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """Copies of the tensors of all threads."""
        return self._meeting.exchange(self.index, tensor)


class ThreadMeeting:
    """Where threads exchange tensors.

    Args:
        size: how many threads there are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size)
        self._brought: list[Tensor | None] = [None] * size

    def exchange(self, index: int, tensor: Tensor) -> list[Tensor]:
        """Bring one thread's tensor; copies of all.

        Raises:
            threading.BrokenBarrierError: another thread failed, or asks for less than this one.
        """
        self._brought[index] = tensor.detach()
        self._barrier.wait(_PATIENCE_S)
        found = [own.clone() for own in self._brought if own is not None]
        self._barrier.wait(_PATIENCE_S)  # nobody may change what others still copy
        return found

    def give_up(self) -> None:
        """A thread failed: let the others fail too."""
        self._barrier.abort()


class MeetingInTurns(ThreadMeeting):
    """Where threads exchange tensors of which one runs at a time, and finds torch's generator as it left it.

    A generator is one for all threads of a process. So each of them draws what a process of its own would.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._turn = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What a thread does within is done in its turns; others have theirs while it waits for them."""
        with self._turn:
            yield

    def exchange(self, index: int, tensor: Tensor) -> list[Tensor]:
        """As ever; within `turn`."""
        state = torch.get_rng_state()
        self._turn.release()
        try:
            return super().exchange(index, tensor)
        finally:
            self._turn.acquire()
            torch.set_rng_state(state)
