"""Gradients in fp32 of parameters that are kept in less, so that many small ones add up without being rounded away.

Weights and activations in bf16 have 8 bits of mantissa. A sum of many microbatches' gradients in it would lose those
that are 256 times smaller than the sum, and an update smaller than that share of its weight would do nothing. So
gradients add up in fp32, and the optimizer updates fp32 copies of the weights (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.1), of which those that compute are the roundings.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from evenflow.spec import Dtype

TORCH_DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LESS = (torch.bfloat16, torch.float16)


def is_rounded(parameter: Tensor) -> bool:
    """Whether a parameter has less than fp32, so that the optimizer keeps a copy of it."""
    return parameter.dtype in _LESS


def sum_gradients_in_fp32(parameters: Iterable[Tensor]) -> None:
    """Have the gradients of these parameters be fp32, whatever they are themselves."""
    for parameter in parameters:
        if is_rounded(parameter):
            parameter.grad_dtype = torch.float32


def gradient_dtype(parameter: Tensor) -> torch.dtype:
    """The type in which a parameter's gradients add up."""
    return torch.float32 if is_rounded(parameter) else parameter.dtype
