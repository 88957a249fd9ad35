"""The process groups of one process: those it shares tensors with, replicas with, and tied weights with.

One DeviceMesh of (pp, dp, tp) makes the groups of the axes. Beside it each group of tied weights has one of its own,
over all processes that have a copy. Every process makes all groups, in the same order, as torch.distributed wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from evenflow.errors import PeerLostError, first_line
from evenflow.plan import Axes, Coordinates
from evenflow.runtime.transport import Transfer, Transport


@dataclass(frozen=True, slots=True)
class Mesh:
    """Where a process is, and its groups.

    Attributes:
        axes: of the whole job.
        at: this process's place.
        dp: the group of its replicas; None for one.
        tp: the mesh of the processes that share its tensors, of one dimension; None for one.
        tied: for each group of tied stages, the group of all processes with a copy that this one adds to; None where
            this process has none, or is alone in it.
    """

    axes: Axes
    at: Coordinates
    dp: dist.ProcessGroup | None = None
    tp: DeviceMesh | None = None
    tied: tuple[dist.ProcessGroup | None, ...] = ()


def make_mesh(axes: Axes, process: int, tied_ranks: Sequence[Sequence[int]], timeout_s: float) -> Mesh:
    """The groups of a process, once all processes have met (torch.distributed is initialised).

    Args:
        axes: of the job.
        process: this one's number.
        tied_ranks: for each group of tied stages, the pp ranks that have one.
        timeout_s: how long a process may wait for another.

    Raises:
        PeerLostError: they did not all come.
    """
    at = axes.coordinates(process)
    if axes.processes == 1:
        return Mesh(axes, at, tied=(None,) * len(tied_ranks))
    try:
        mesh = init_device_mesh("cpu", (axes.pp, axes.dp, axes.tp), mesh_dim_names=("pp", "dp", "tp"))
        tied = tuple(_tied_group(axes, at, sorted(set(ranks)), timeout_s) for ranks in tied_ranks)
    except RuntimeError as error:
        raise PeerLostError(f"the ranks did not meet in their groups: {first_line(error)}") from error
    return Mesh(
        axes,
        at,
        dp=mesh["dp"].get_group() if axes.dp > 1 else None,
        tp=mesh["tp"] if axes.tp > 1 else None,
        tied=tied,
    )


def _tied_group(axes: Axes, at: Coordinates, ranks: Sequence[int], timeout_s: float) -> dist.ProcessGroup | None:
    """The group of all copies of one weight: of these pp ranks and of every replica, with the same place on tp."""
    own: dist.ProcessGroup | None = None
    for tp in range(axes.tp) if len(ranks) > 1 else ():
        copies = [axes.process(Coordinates(pp, dp, tp)) for pp in ranks for dp in range(axes.dp)]
        group = dist.new_group(copies, timedelta(seconds=timeout_s), "gloo")
        if tp == at.tp and at.pp in ranks:
            own = group
    return own


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
