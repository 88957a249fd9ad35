"""Which part of a tensor a process of the tp axis holds.

A tensor is cut along one dim. One that packs several matrices side by side (gate and up of experts, say) is cut in each
of them, so that every process has the same part of each: its part is then not contiguous in the whole.

    whole, 2 packed     g0 g1 g2 g3 u0 u1 u2 u3
    process 0 of 2      g0 g1 u0 u1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from evenflow.runtime import TensorGroup

Run = tuple[int, int]  # begin and end along the dim that is cut


@dataclass(frozen=True, slots=True)
class Cut:
    """A process's part of one tensor.

    Attributes:
        shape: the whole tensor's.
        dim: along which it is cut, counted from the front.
        packed: how many matrices lie side by side along that dim.
        size: how many processes share it out.
        index: which of them this is.
    """

    shape: tuple[int, ...]
    dim: int
    packed: int
    size: int
    index: int

    @property
    def share(self) -> int:
        """The largest part of one packed matrix; the last processes have less where it does not divide."""
        return -(-self.shape[self.dim] // self.packed // self.size)

    def runs(self, index: int) -> tuple[Run, ...]:
        """Where the parts of process `index` lie in the whole."""
        each = self.shape[self.dim] // self.packed
        begin, end = (min(own * self.share, each) for own in (index, index + 1))
        return tuple((number * each + begin, number * each + end) for number in range(self.packed))

    @property
    def begin(self) -> int:
        """Where the first part of this process begins."""
        return self.runs(self.index)[0][0]

    @property
    def is_contiguous(self) -> bool:
        """Whether it is one part."""
        return self.packed == 1

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of what this process holds."""
        length = sum(end - begin for begin, end in self.runs(self.index))
        return (*self.shape[: self.dim], length, *self.shape[self.dim + 1 :])

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where in the whole tensor a contiguous part begins."""
        return tuple(self.begin if dim == self.dim else 0 for dim in range(len(self.shape)))

    def take(self, whole: Tensor) -> Tensor:
        """This process's part of the whole tensor, with memory of its own."""
        parts = [whole.narrow(self.dim, begin, end - begin) for begin, end in self.runs(self.index)]
        return torch.cat(parts, self.dim) if len(parts) > 1 else parts[0].clone(memory_format=torch.contiguous_format)

    def read(self, whole: Any) -> Tensor:
        """This process's part of a tensor in a file, and nothing beside it; `whole` is safetensors' slice of it."""
        before = (slice(None),) * self.dim
        return torch.cat([whole[(*before, slice(begin, end))] for begin, end in self.runs(self.index)], self.dim)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole tensor from the parts of all processes."""
        whole = parts[0].new_empty(self.shape)
        for index, part in enumerate(parts):
            at = 0
            for begin, end in self.runs(index):
                whole.narrow(self.dim, begin, end - begin).copy_(part.narrow(self.dim, at, end - begin))
                at += end - begin
        return whole

    def gather(self, part: Tensor, group: TensorGroup) -> Tensor:
        """The whole tensor, from all processes of the group."""
        length = self.share * self.packed
        if part.shape[self.dim] < length:  # collected tensors have one shape
            rest = (*part.shape[: self.dim], length - part.shape[self.dim], *part.shape[self.dim + 1 :])
            part = torch.cat([part, part.new_zeros(rest)], self.dim)
        return self.join(group.collect(part.contiguous()))

    def distributed(self, part: Tensor, mesh: DeviceMesh) -> DTensor:
        """This process's part as a tensor that knows the whole's shape and who has the rest."""
        placement: Placement = Shard(self.dim)
        if not self.is_contiguous:
            placement = _StridedShard(self.dim, split_factor=self.packed)
        stride = torch.empty(self.shape, device="meta").stride()
        return DTensor.from_local(part, mesh, [placement], run_check=False, shape=torch.Size(self.shape), stride=stride)
