"""Tensors of which a process holds a part: the plain part, and what goes with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(flat: Tensor, parameter: nn.Parameter) -> Tensor:
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
