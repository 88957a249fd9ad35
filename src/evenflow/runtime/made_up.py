"""Made-up peers: what one rank of a plan needs round it to run alone on one device, whatever the plan's size.

Tensors that others would send have the right shape, type and device, and values as hidden states have them. Sums and
collections over replicas, copies and shards come back at once and in the right shapes. So what runs is the executor
itself, on stages that are cut as the plan says; what it computes means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from evenflow.plan import Axes, Coordinates
from evenflow.runtime.mesh import Mesh, copies_of
from evenflow.runtime.transport import Transfer

_BACKEND = "fake"  # a group whose other members are not there; torch registers it with the module of `FakeStore`


class MadeUpTransport:
    """A rank alone, as if all others were there: what it receives is made up, what it sends goes nowhere.

    A send is complete at once. A buffer is filled when it is first received into: what it holds from then on is as
    good as new values, and to make those would take the time of neither a transfer nor of anything else in a run.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._chances: dict[torch.device, torch.Generator] = {}
        self._filled: set[tuple[int, int]] = set()

    def send(self, tensor: Tensor, rank: int, tag: int) -> Transfer:  # noqa: ARG002 - nobody is there to tell apart
        """Nothing travels."""
        return _Done()

    def receive(self, buffer: Tensor, rank: int, tag: int) -> Transfer:  # noqa: ARG002 - the same
        """Fill the buffer, in place."""
        place = buffer.data_ptr(), buffer.numel()
        if place not in self._filled:
            self._filled.add(place)
            buffer.normal_(generator=self._chance(buffer.device))
        return _Done()

    def sum(self, tensor: Tensor) -> None:
        """The others have nothing to add."""

    def close(self) -> None:
        """Nothing to part from."""

    def _chance(self, device: torch.device) -> torch.Generator:
        if device not in self._chances:
            self._chances[device] = torch.Generator(device).manual_seed(self._seed)
        return self._chances[device]


class _Done:
    """A transfer that was complete at once."""

    def wait(self) -> None:
        """Return at once."""


class MadeUpTensorGroup:
    """One of several that would share out a stage, alone.

    Attributes:
        size: how many there would be.
        index: which one this would be.
    """

    def __init__(self, size: int, index: int = 0) -> None:
        self.size = size
        self.index = index

    def add(self, tensor: Tensor) -> None:
        """Leave it as it is: the others have nothing to add."""

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """As many tensors as there would be, each with memory of its own."""
        return [tensor.clone() for _ in range(self.size)]


def made_up_mesh(
    axes: Axes, process: int, tied_ranks: Sequence[Sequence[int]], device: torch.device | None = None
) -> Mesh:
    """The mesh of one process of a job, as `make_mesh` makes it, with nobody else in its groups.

    Only the groups that this process is in are made, so a job of thousands takes no longer than one of two. One job a
    process: torch.distributed is initialised.

    Args:
        axes: of the job.
        process: the number that this one would have.
        tied_ranks: for each group of tied stages, the pp ranks that have one.
        device: where this process's tensors are; by default in host memory.
    """
    at = axes.coordinates(process)
    if axes.processes == 1:
        return Mesh(axes, at, tied=(None,) * len(tied_ranks))
    dist.init_process_group(_BACKEND, store=FakeStore(), rank=process, world_size=axes.processes)
    kind = (device or torch.device("cpu")).type
    dp = _group(axes.replicas(at)) if axes.dp > 1 else None
    tp = _group(axes.shards(at)) if axes.tp > 1 else None
    return Mesh(
        axes,
        at,
        dp=dp,
        tp=None if tp is None else DeviceMesh.from_group(tp, kind, mesh_dim_names=("tp",)),
        shards=None if tp is None else MadeUpTensorGroup(axes.tp, at.tp),
        tied=tuple(_tied_group(axes, at, ranks) for ranks in tied_ranks),
    )


def _tied_group(axes: Axes, at: Coordinates, ranks: Sequence[int]) -> dist.ProcessGroup | None:
    own = sorted(set(ranks))
    return _group(copies_of(axes, own, at.tp)) if len(own) > 1 and at.pp in own else None


def _group(processes: Sequence[int]) -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(list(processes), backend=_BACKEND)
    return group
