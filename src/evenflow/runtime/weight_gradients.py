"""Weight gradients put off: what splits a backward into I and W, at the linear layers.

A linear layer's backward makes two products: the gradient of its input, which the layer before waits for, and that
of its weight, which nobody waits for before the optimizer. Here the first is made at once, and for the second
(input, output gradient) are queued: for I until W asks for them, for a whole backward they are used on the spot. The
graph is never run twice, so a recomputed block runs its forward twice, not once more for each of its layers.

Weight gradients are accumulated by one kernel, `addmm`, in every schedule: sums that are made differently differ in
their last bits, and runs under different schedules would drift apart. Of weights in bf16 each microbatch's product is
rounded to bf16, once, and added to a sum in fp32.

What a layer's weight and bias are for autograd follows from that: they get no gradient from it, so hooks on them and
`torch.autograd.grad` see None; the gradient is in `.grad` alone. And input, weight and output have one type: autocast,
under which they would differ, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenflow.errors import InputError
from evenflow.runtime.precision import gradient_dtype, is_rounded, sum_gradients_in_fp32
from evenflow.runtime.row_gradients import add_rows


@dataclass(frozen=True, slots=True)
class _PutOff:
    """What a linear layer's weight gradient is made from."""

    linear: nn.Linear
    hidden: Tensor
    gradient: Tensor


class WeightGradients:
    """The queue of one stage: weight gradients are made at once, or put off for a microbatch."""

    def __init__(self, stage: nn.Module) -> None:
        """Have all linear layers of `stage` leave their weight gradients here; its embeddings add rows."""
        self._queues: dict[int, list[_PutOff]] = {}
        self._current: list[_PutOff] | None = None
        self._linears: list[nn.Linear] = []
        for module in stage.modules():
            if type(module) is nn.Linear or type(module) is _QueuedLinear:
                module.__class__ = _QueuedLinear
                module.weight_gradients = self  # type: ignore[assignment]  # a plain attribute, no submodule
                self._linears.append(module)
        add_rows(stage)
        sum_gradients_in_fp32(stage.parameters())

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters whose gradients are left here."""
        linears = [own for own in self._linears if own.weight.requires_grad]
        found = {id(own): own for linear in linears for own in linear.parameters() if own.requires_grad}
        return tuple(found.values())

    @contextmanager
    def put_off(self, microbatch: int) -> Iterator[None]:
        """Within, weight gradients are kept for `run`."""
        self._current = self._queues.setdefault(microbatch, [])
        try:
            yield
        finally:
            self._current = None

    def run(self, microbatch: int) -> None:
        """Make the weight gradients that were put off, and let go of what they are made from."""
        queue = self._queues.pop(microbatch)
        queue.reverse()
        with torch.no_grad():
            while queue:
                own = queue.pop()
                _accumulate(own.linear, own.hidden, own.gradient)

    def holds(self, microbatch: int, tensor: Tensor) -> bool:
        """Whether a queue keeps the memory of `tensor`."""
        storage = tensor.untyped_storage().data_ptr()
        return any(
            storage in (own.hidden.untyped_storage().data_ptr(), own.gradient.untyped_storage().data_ptr())
            for own in self._queues.get(microbatch, ())
        )

    def add(self, linear: nn.Linear, hidden: Tensor, gradient: Tensor) -> None:
        """Take what a linear layer's backward leaves: its input and output gradient, both [tokens, features]."""
        if self._current is None:
            _accumulate(linear, hidden, gradient)
        else:
            self._current.append(_PutOff(linear, hidden, gradient))


class _QueuedLinear(nn.Linear):
    """A linear layer whose weight gradient goes to a queue."""

    weight_gradients: WeightGradients

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`.

        Raises:
            InputError: input and weight are of different types, or autocast would make them so.
        """
        if not torch.is_grad_enabled() or not self.weight.requires_grad:
            return super().forward(input)
        if input.dtype != self.weight.dtype or torch.is_autocast_enabled(input.device.type):
            raise InputError(
                f"a linear layer with a weight of {self.weight.dtype} was given {input.dtype}"
                f"{' under autocast' if torch.is_autocast_enabled(input.device.type) else ''}; weight gradients are "
                "made from one type: a model and inputs of that type, without autocast, would do"
            )
        # Flat, since the output would else be a view made inside the function, which may not be changed in place.
        flat = input if input.ndim == 2 else input.reshape(-1, input.shape[-1])
        output: Tensor = _Product.apply(flat, self.weight, self.bias, self)  # type: ignore[no-untyped-call]  # no types
        return output if input.ndim == 2 else output.view(*input.shape[:-1], output.shape[-1])


class _Product(torch.autograd.Function):
    """hidden @ weight.T + bias, with a backward that makes the input's gradient alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, linear: _QueuedLinear) -> Tensor:
        ctx.linear = linear
        ctx.save_for_backward(hidden, weight)
        return functional.linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        hidden, weight = ctx.saved_tensors
        # Detached: a tensor in the queue would else hold its graph, and with it the stage's input and its gradient.
        ctx.linear.weight_gradients.add(ctx.linear, hidden.detach(), gradients[0])
        return gradients[0].matmul(weight) if ctx.needs_input_grad[0] else None, None, None, None


def _accumulate(linear: nn.Linear, hidden: Tensor, gradient: Tensor) -> None:
    """Add one product to the weight's gradient; called for every linear layer and microbatch, without autograd."""
    weight = linear.weight
    if weight.grad is None:
        weight.grad = (gradient.t() @ hidden).to(gradient_dtype(weight))
    elif is_rounded(weight):
        weight.grad.add_(gradient.t() @ hidden)  # no kernel of the processor's adds such a product to fp32
    else:
        weight.grad.addmm_(gradient.t(), hidden)
    bias: Tensor | None = linear.bias
    if bias is not None and bias.requires_grad:
        total = gradient.sum(0, dtype=gradient_dtype(bias))
        bias.grad = total if bias.grad is None else bias.grad.add_(total)
