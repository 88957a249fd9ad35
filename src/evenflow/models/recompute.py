"""Recomputation: a block keeps its input alone, and its forward is run again when its backward needs the rest.

Training with sublinear memory cost (Chen et al., 2016, https://arxiv.org/abs/1604.06174), a block a segment. PyTorch's
checkpoint in its non-reentrant form, since gradients may then flow into whatever a block is called with, not into its
hidden states alone; it stops the second forward at the last tensor that the backward needs. That forward runs once for
a graph task, and with our queue of weight gradients a backward is one task, whole or in halves: W finds what it needs
in the queue. So each block's forward runs twice in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(blocks: Iterable[nn.Module]) -> None:
    """From now on these blocks keep their inputs alone; `keep_blocks` undoes it.

    What a block draws at random is drawn again from the same state of the generators.
    """
    for block in blocks:
        block.forward = partial(_twice, type(block).forward, block)


def keep_blocks(blocks: Iterable[nn.Module]) -> None:
    """From now on these blocks keep what their backward needs."""
    for block in blocks:
        vars(block).pop("forward", None)


def _twice(forward: Any, block: nn.Module, *inputs: Any, **settings: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(block, *inputs, **settings)
    return checkpoint(partial(forward, block), *inputs, use_reentrant=False, **settings)
