"""Recomputation: a module keeps its input alone, and its forward is run again when its backward needs the rest.

Training with sublinear memory cost (Chen et al., 2016, https://arxiv.org/abs/1604.06174), a module a segment: a whole
block, or the attention inside it (selective: Korthikanti et al., 2022, https://arxiv.org/abs/2205.05198, section 5;
there the products of queries, keys and values alone, here with the projections round them, since the kernels of today
keep little between). PyTorch's checkpoint in its non-reentrant form, since gradients may then flow into whatever a
module is called with, not into its hidden states alone; it stops the second forward at the last tensor that the
backward needs. That forward runs once for a graph task, and with our queue of weight gradients a backward is one task,
whole or in halves: W finds what it needs in the queue. So each module's forward runs twice in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_modules(modules: Iterable[nn.Module]) -> None:
    """From now on these modules keep their inputs alone; `keep_modules` undoes it.

    What a module draws at random is drawn again from the same state of the generators.
    """
    for module in modules:
        module.forward = _Twice(module, vars(module).get("forward"))


def keep_modules(modules: Iterable[nn.Module]) -> None:
    """From now on these modules keep what their backward needs; what else their forwards were made to do stays."""
    for module in modules:
        own = vars(module).get("forward")
        if isinstance(own, _Twice):
            del module.forward
            if own.before is not None:
                module.forward = own.before


class _Twice:
    """A module's forward that is run again in its backward.

    Args:
        module: the module.
        before: the forward that it had of its own, beside its class's.
    """

    def __init__(self, module: nn.Module, before: Any) -> None:
        self.before = before
        self._module = module

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        forward = self.before or partial(type(self._module).forward, self._module)
        if not torch.is_grad_enabled():
            return forward(*inputs, **settings)
        return checkpoint(forward, *inputs, use_reentrant=False, **settings)
