"""Memory for the tensors of a stage, and none for those of other stages.

A weight that is elsewhere stays in its place as zeros of its shape, all of which are one number: code that looks at it
or computes with it before the stage's own work finds what it expects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Absent:
    """One weight of another stage.

    Attributes:
        module: the module that has it.
        name: its name there.
        shape: its shape.
        dtype: its type.
    """

    module: nn.Module
    name: str
    shape: torch.Size
    dtype: torch.dtype

    def fill(self, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
        """Put zeros in its place."""
        setattr(self.module, self.name, torch.zeros((), dtype=dtype or self.dtype, device=device).expand(self.shape))


def make_absent(module: nn.Module, writable: bool = False) -> list[Absent]:
    """Take all parameters out of `module` and what is in it; embeddings return zeros from then on.

    Args:
        module: one of another stage.
        writable: whether those zeros are written to, and so need memory.
    """
    absents: list[Absent] = []
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False, remove_duplicate=False)):
            absents.append(make_parameter_absent(child, name, parameter))
        if type(child).forward is nn.Embedding.forward:
            child.forward = partial(_no_rows, child, writable)
    return absents


def make_parameter_absent(module: nn.Module, name: str, parameter: Tensor) -> Absent:
    """Take one parameter out of a module."""
    delattr(module, name)
    absent = Absent(module, name, parameter.shape, parameter.dtype)
    absent.fill(parameter.device)
    return absent


def refill(absents: list[Absent], change: Callable[[Tensor], Tensor]) -> None:
    """Have absent weights follow the stage to another device or type."""
    for absent in absents:
        was: Tensor = getattr(absent.module, absent.name)
        now = change(was.new_zeros(()))
        absent.fill(now.device, now.dtype)


def allocate(stage: nn.Module, device: str = "cpu") -> None:
    """Give every parameter and buffer of `stage` memory on `device`, not yet filled; a tied weight stays one."""
    made: dict[Tensor, Tensor] = {}
    for module in stage.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in made:
                empty = mark_unfilled(torch.empty(parameter.shape, dtype=parameter.dtype, device=device))
                made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            if buffer not in made:
                made[buffer] = mark_unfilled(torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
            setattr(module, name, made[buffer])
    for absent in getattr(stage, "absents", ()):
        absent.fill(device)


def mark_unfilled(tensor: Tensor) -> Tensor:
    """Begin a new tensor with what no model would, so that one which its initialisation leaves out is found."""
    if tensor.numel() and tensor.dtype != torch.bool:
        tensor.view(-1)[:1].fill_(_mark(tensor.dtype))
    return tensor


def is_unfilled(tensor: Tensor) -> bool:
    """Whether a tensor begins as `mark_unfilled` left it."""
    if not tensor.numel() or tensor.dtype == torch.bool:
        return False
    first = tensor.flatten()[0] if tensor.is_contiguous() else tensor[(0,) * tensor.ndim]
    return bool(first.isnan()) if tensor.is_floating_point() else bool(first == _mark(tensor.dtype))


def _mark(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min


def _no_rows(embedding: nn.Module, writable: bool, ids: Tensor, *_: Any, **__: Any) -> Tensor:
    """What an absent table makes of token ids: zeros, which take no memory unless they are written to."""
    weight: Tensor = embedding.weight  # type: ignore[assignment]  # a plain tensor by now
    shape = (*ids.shape, weight.shape[-1])
    return weight.new_zeros(shape) if writable else weight.new_zeros(()).expand(shape)
