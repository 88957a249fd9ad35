"""The process groups of one process: those it shares tensors with, replicas with, and tied weights with.

One DeviceMesh of (pp, dp, tp) makes the groups of the axes. Beside it each group of tied weights has one of its own,
over all processes that have a copy. Every process makes all groups, in the same order, as torch.distributed wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from evenflow.errors import PeerLostError, first_line
from evenflow.plan import Axes, Coordinates
from evenflow.runtime.tensor_group import ProcessTensorGroup, TensorGroup
from evenflow.runtime.transport import Transfer, Transport

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Mesh:
    """Where a process is, and its groups.

    Attributes:
        axes: of the whole job.
        at: this process's place.
        dp: the group of its replicas; None for one.
        tp: the mesh of the processes that share its tensors, of one dimension; None for one.
        shards: those processes as layers see them; None for one.
        tied: for each group of tied stages, the group of all processes with a copy that this one adds to; None where
            this process has none, or is alone in it.
    """

    axes: Axes
    at: Coordinates
    dp: dist.ProcessGroup | None = None
    tp: DeviceMesh | None = None
    shards: TensorGroup | None = None
    tied: tuple[dist.ProcessGroup | None, ...] = ()

    @property
    def process_name(self) -> str:
        """This process as messages call it: by its number, and its place where there are more axes than pp."""
        at, process = self.at, self.axes.process(self.at)
        places = {"dp": (self.axes.dp, at.dp), "tp": (self.axes.tp, at.tp)}
        others = [f", {axis} {place}" for axis, (size, place) in places.items() if size > 1]
        return f"rank {process} (pp {at.pp}{''.join(others)})" if others else f"rank {process}"


def make_mesh(
    axes: Axes,
    process: int,
    tied_ranks: Sequence[Sequence[int]],
    timeout_s: float,
    device: torch.device = _CPU,
    own_gpus: bool = False,
) -> Mesh:
    """The groups of a process, once all processes have met (torch.distributed is initialised).

    Args:
        axes: of the job.
        process: this one's number.
        tied_ranks: for each group of tied stages, the pp ranks that have one.
        timeout_s: how long a process may wait for another.
        device: where this process's tensors are.
        own_gpus: whether every process has a GPU of its own, so that NCCL can add up what layers share.

    Raises:
        PeerLostError: they did not all come.
    """
    at = axes.coordinates(process)
    if axes.processes == 1:
        return Mesh(axes, at, tied=(None,) * len(tied_ranks))
    try:
        mesh = _mesh_of_axes(axes, process, timeout_s)
        tied = tuple(_tied_group(axes, at, sorted(set(ranks)), timeout_s) for ranks in tied_ranks)
        tp = _tp_mesh(axes, at, mesh, device, own_gpus, timeout_s) if axes.tp > 1 else None
    except RuntimeError as error:
        raise PeerLostError(f"the ranks did not meet in their groups: {first_line(error)}") from error
    return Mesh(
        axes,
        at,
        dp=mesh["dp"].get_group() if axes.dp > 1 else None,
        tp=tp,
        shards=ProcessTensorGroup(tp.get_group()) if tp is not None else None,
        tied=tied,
    )


def _mesh_of_axes(axes: Axes, process: int, timeout_s: float) -> DeviceMesh:
    """The mesh of all axes, over groups that wait for `timeout_s`; those that torch makes for one wait half an hour."""
    order = torch.arange(axes.processes).view(axes.pp, axes.dp, axes.tp)
    own: list[dist.ProcessGroup] = []
    for dim in range(order.ndim):
        for line in order.movedim(dim, -1).reshape(-1, order.shape[dim]).tolist():
            group = dist.new_group(line, timedelta(seconds=timeout_s), "gloo")
            if process in line:
                own.append(group)
    return DeviceMesh.from_group(own, "cpu", mesh=order, mesh_dim_names=("pp", "dp", "tp"))


def _tp_mesh(
    axes: Axes, at: Coordinates, mesh: DeviceMesh, device: torch.device, own_gpus: bool, timeout_s: float
) -> DeviceMesh:
    """The processes that share this one's tensors; on GPUs a mesh of their kind, over NCCL where that is possible."""
    if device.type == "cpu":
        return mesh["tp"]
    group = mesh["tp"].get_group()
    places = [Coordinates(pp, dp) for pp in range(axes.pp) for dp in range(axes.dp)] if own_gpus else []
    for place in places:
        made = dist.new_group(list(axes.shards(place)), timedelta(seconds=timeout_s), "nccl")
        if (place.pp, place.dp) == (at.pp, at.dp):
            group = made
    return DeviceMesh.from_group(group, device.type, mesh_dim_names=("tp",))


def _tied_group(axes: Axes, at: Coordinates, ranks: Sequence[int], timeout_s: float) -> dist.ProcessGroup | None:
    """The group of all copies of one weight: of these pp ranks and of every replica, with the same place on tp."""
    own: dist.ProcessGroup | None = None
    for tp in range(axes.tp) if len(ranks) > 1 else ():
        group = dist.new_group(list(copies_of(axes, ranks, tp)), timedelta(seconds=timeout_s), "gloo")
        if tp == at.tp and at.pp in ranks:
            own = group
    return own


def copies_of(axes: Axes, ranks: Sequence[int], tp: int) -> tuple[int, ...]:
    """The processes with a copy of a weight that stages of these pp ranks share, at one place on tp."""
    return tuple(axes.process(Coordinates(pp, dp, tp)) for pp in ranks for dp in range(axes.dp))


class PipelineTransport:
    """The transport of one pipeline among several: ranks are those of the program, sums are over all processes.

    Args:
        job: reaches every process of the job.
        pipeline: the process of each rank.
    """

    def __init__(self, job: Transport, pipeline: Sequence[int]) -> None:
        self._job = job
        self._pipeline = tuple(pipeline)

    def send(self, tensor: Tensor, rank: int, tag: int) -> Transfer:
        """Start sending to a rank of this pipeline."""
        return self._job.send(tensor, self._pipeline[rank], tag)

    def receive(self, buffer: Tensor, rank: int, tag: int) -> Transfer:
        """Start receiving from a rank of this pipeline."""
        return self._job.receive(buffer, self._pipeline[rank], tag)

    def sum(self, tensor: Tensor) -> None:
        """Sum over all processes of the job."""
        self._job.sum(tensor)

    def close(self) -> None:
        """Part from all."""
        self._job.close()


def job_edges(axes: Axes, edges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The edges between processes that those between a pipeline's ranks make, in all pipelines of the job."""
    columns = [axes.pipeline(Coordinates(0, dp, tp)) for dp in range(axes.dp) for tp in range(axes.tp)]
    return tuple(sorted((column[own], column[other]) for own, other in edges for column in columns))
