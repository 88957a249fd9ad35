"""Gradients of embeddings, added row by row: a microbatch names few rows of a large table.

Autograd makes a gradient as large as the table for every microbatch, nearly all of it zeros, and adds it to the one
that is there. For a vocabulary of 32,000 that is most of what an embedding costs. Here only the rows that were named
are added, one token after the other, so that the bits depend on nothing but the order of the microbatches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenflow.runtime.parts import like, local
from evenflow.runtime.precision import gradient_dtype


def add_rows(stage: nn.Module) -> None:
    """Have the plain embeddings of `stage` add their gradients' rows; others stay as they are."""
    for module in stage.modules():
        if type(module) is nn.Embedding and not (module.sparse or module.scale_grad_by_freq or module.max_norm):
            module.__class__ = _RowEmbedding


class _RowEmbedding(nn.Embedding):
    """An embedding whose gradient goes row by row to its weight's."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Embedding`."""
        if not torch.is_grad_enabled() or not self.weight.requires_grad:
            return super().forward(input)
        return add_row_gradients(input, self.weight, self.padding_idx)


def add_row_gradients(ids: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
    """Rows of a table, or of this process's part of one, with a backward that adds to its gradient by itself."""
    output: Tensor = _Rows.apply(ids, weight, padding_idx)  # type: ignore[no-untyped-call]  # no types
    return output


class _Rows(torch.autograd.Function):
    """weight[ids], with a backward that adds to the weight's gradient by itself."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
        ctx.weight, ctx.padding_idx = weight, padding_idx
        ctx.save_for_backward(ids)
        return functional.embedding(ids, local(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        rows, gradient = ids.reshape(-1), gradients[0].reshape(-1, gradients[0].shape[-1])
        if ctx.padding_idx is not None:
            gradient = gradient.masked_fill((rows == ctx.padding_idx).unsqueeze(-1), 0.0)
        weight: Tensor = ctx.weight
        if weight.grad is None:
            weight.grad = like(torch.zeros_like(local(weight), dtype=gradient_dtype(weight)), weight)
        total = local(weight.grad)
        gradient = gradient.to(total.dtype)
        if total.is_cuda:
            # Sorts the rows first, so that those named twice are always added in one order; `index_add_` does not.
            total.index_put_((rows,), gradient, accumulate=True)
        else:
            total.index_add_(0, rows, gradient)
        return None, None, None
