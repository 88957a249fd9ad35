"""Tensors of which a process holds a part: the plain part, and what goes with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from evenflow.runtime.precision import gradient_dtype, sum_gradients_in_fp32


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def differentiable(parameter: Tensor) -> Tensor:
    """The part of a parameter that this process holds, for a layer to compute with.

    Its gradient is added to the parameter's here, and not by autograd: that would add up DTensors, whose dispatch takes
    longer than a small layer's product (0.3 ms more for each parameter and microbatch on one EPYC core).
    """
    if not isinstance(parameter, DTensor) or not (torch.is_grad_enabled() and parameter.requires_grad):
        return local(parameter)
    result: Tensor = _Part.apply(parameter)  # type: ignore[no-untyped-call]  # no types
    return result


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: nn.Parameter) -> Tensor:
        ctx.parameter = parameter
        return local(parameter).detach()  # not the part itself, of which autograd would make a result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        parameter: nn.Parameter = ctx.parameter
        if parameter.grad is not None:
            local(parameter.grad).add_(gradients[0])
            return
        # A vector's gradient may be another's as well (that of a sum of two); the products' are nobody else's.
        own = gradients[0].contiguous().to(gradient_dtype(parameter), copy=gradients[0].ndim == 1)
        parameter.grad = like(own, parameter)


def like(flat: Tensor, parameter: Tensor) -> Tensor:
    """A gradient of a parameter's part, in its shape and shared out as that is."""
    shaped = flat.view_as(local(parameter))
    if not isinstance(parameter, DTensor):
        return shaped
    return DTensor.from_local(
        shaped,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=torch.empty(parameter.shape, device="meta").stride(),
    )


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether processes of the tp axis hold different parts of it."""
    return isinstance(parameter, DTensor) and not any(own.is_replicate() for own in parameter.placements)


def plain_part(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter that is the plain part of one that is shared out, in the same memory; any other as it is."""
    if not isinstance(parameter, DTensor):
        return parameter
    part = nn.Parameter(local(parameter).detach(), requires_grad=parameter.requires_grad)
    sum_gradients_in_fp32([part])
    return part
