"""The loss of logits of which each process has the columns of some tokens of the vocabulary.

Logits are the largest tensor of many models. Gathered, they and what their loss keeps would be on every process; here
three numbers of each token go round instead: the largest logit, the sum of exponentials, the logit of the label
(Shoeybi et al. 2019, arXiv:1909.08053, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from evenflow.runtime import TensorGroup


def shared_loss(
    group: TensorGroup,
    begin: int,
    logits: Tensor,
    labels: Tensor,
    vocab_size: int | None = None,  # noqa: ARG001 - models pass it
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    z_loss: float = 0.0,
    **_: Any,
) -> Tensor:
    """As transformers' loss of a causal language model, which it takes the place of.

    With `z_loss` it holds so much of the squared log of each softmax's divisor beside (Chowdhery et al. 2022,
    arXiv:2204.02311, section 5): what keeps logits from drifting.

    Args:
        group: those that share the vocabulary out.
        begin: this process's first token.
        logits: this process's columns [batch, seq, part of the vocabulary].
        labels: token ids [batch, seq]; each position predicts the next one's.
        vocab_size: of the whole.
        num_items_in_batch: what to divide the sum by; by default the labels that count.
        ignore_index: the label that does not.
        shift_labels: labels of each position itself [batch, seq].
        z_loss: weight of the squares.

    Returns:
        The mean loss [].
    """
    if shift_labels is None:
        shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1)
    flat = logits.float().reshape(-1, logits.shape[-1])
    losses, divisors = _TokenLosses.apply(flat, targets, begin, group)  # type: ignore[no-untyped-call]  # no types
    if z_loss:
        losses = losses + z_loss * divisors.square()
    counted = targets != ignore_index
    return torch.where(counted, losses, 0.0).sum() / (
        counted.sum() if num_items_in_batch is None else num_items_in_batch
    )


class _TokenLosses(torch.autograd.Function):
    """-log softmax at the label, and the log of the softmax's divisor, for each token."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, begin: int, group: TensorGroup) -> tuple[Tensor, Tensor]:
        largest = torch.stack(group.collect(logits.amax(-1))).amax(0)
        shifted = logits - largest.unsqueeze(-1)
        is_own = (targets >= begin) & (targets < begin + logits.shape[-1])
        columns = (targets - begin).masked_fill(~is_own, 0).unsqueeze(-1)
        at_label = shifted.gather(-1, columns).squeeze(-1).masked_fill(~is_own, 0.0)
        shares = shifted.exp_()
        sums = torch.stack([shares.sum(-1), at_label])
        group.add(sums)
        ctx.save_for_backward(shares.div_(sums[0].unsqueeze(-1)), columns, is_own)
        logs = sums[0].log()
        return logs - sums[1], logs + largest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        shares, columns, is_own = ctx.saved_tensors
        own, divisor = (gradient.unsqueeze(-1) for gradient in gradients)  # of the one not used it is zeros
        result = shares.mul_(own + divisor)  # nobody else's, and not needed again
        return result.scatter_add_(-1, columns, -own * is_own.unsqueeze(-1)), None, None, None
