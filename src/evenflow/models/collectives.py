"""Where tensors of a stage pass from all processes of the tp axis to each one's part, and back.

Outside, every process has the same tensor and the same gradient. `enter` and `leave` are f and g of Shoeybi et al. 2019
(Megatron-LM, arXiv:1909.08053, section 3): one is a sum of gradients, the other of results. `gather` and `split` do
with parts of the last dim what those do with sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evenflow.models.cut import Cut
from evenflow.runtime import TensorGroup

_ENTERED = "_evenflow_entered"


def enter(tensor: Tensor, group: TensorGroup) -> Tensor:
    """The same tensor for layers of which each process has a part: their gradients of it are added up.

    Several layers that read one tensor, such as the projections of attention, enter once: what each process has of
    their gradients is added before, and one sum goes round instead of three.
    """
    if not (torch.is_grad_enabled() and tensor.requires_grad):
        return tensor
    found: Tensor | None = getattr(tensor, _ENTERED, None)
    if found is None:
        found = _Enter.apply(tensor, group)  # type: ignore[no-untyped-call]  # no types
        assert found is not None
        if not isinstance(tensor, nn.Parameter):  # which lasts longer than a microbatch
            setattr(tensor, _ENTERED, found)
    return found


def leave(tensor: Tensor, group: TensorGroup) -> Tensor:
    """The sum of what each process has of a result. `tensor` must be nobody else's: it becomes the sum."""
    result: Tensor = _Leave.apply(tensor, group)  # type: ignore[no-untyped-call]  # no types
    return result


def gather(tensor: Tensor, group: TensorGroup, width: int) -> Tensor:
    """All parts of the last dim, which is `width` long as a whole."""
    result: Tensor = _Gather.apply(tensor, group, width)  # type: ignore[no-untyped-call]  # no types
    return result


def split(tensor: Tensor, group: TensorGroup) -> Tensor:
    """This process's part of the last dim."""
    result: Tensor = _Split.apply(tensor, group)  # type: ignore[no-untyped-call]  # no types
    return result


def _last_dim(tensor: Tensor, group: TensorGroup, width: int) -> Cut:
    return Cut((*tensor.shape[:-1], width), tensor.ndim - 1, 1, group.size, group.index)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: TensorGroup) -> Tensor:
        ctx.group = group
        # No view: that would hold the tensor, which holds what entered, and neither would ever be freed.
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # autograd may hand the same to others
        ctx.group.add(total)
        return total, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: TensorGroup) -> Tensor:
        total = tensor if tensor.is_contiguous() else tensor.contiguous()
        group.add(total)
        if total is tensor:
            ctx.mark_dirty(tensor)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - autograd passes it
        return gradients[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: TensorGroup, width: int) -> Tensor:
        ctx.group = group
        return _last_dim(tensor, group, width).gather(tensor, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0]
        return _last_dim(gradient, ctx.group, gradient.shape[-1]).take(gradient), None, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: TensorGroup) -> Tensor:
        ctx.group, ctx.width = group, tensor.shape[-1]
        return _last_dim(tensor, group, ctx.width).take(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0]
        return _last_dim(gradient, ctx.group, ctx.width).gather(gradient, ctx.group), None
