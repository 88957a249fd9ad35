"""Runs one stage's forwards and backwards and keeps what lies between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from evenflow.models import Stage
from evenflow.runtime import WeightGradients


@dataclass(frozen=True, slots=True)
class _Flight:
    """One microbatch between its forward and its backward: where its gradient starts and where it ends."""

    root: GradientEdge
    leaf: Tensor | None


class StageRunner:
    """Forward and backward of one stage, microbatch by microbatch.

    Of an output only the root of its graph is kept, so that the tensor itself is freed once it was sent.
    """

    def __init__(self, stage: Stage, microbatches: int) -> None:
        self.stage = stage
        self.weight_gradients = WeightGradients(stage)
        self.losses: dict[int, Tensor] = {}
        self._share = 1.0 / microbatches
        self._seed = torch.tensor(self._share, device=stage.device)
        self._flights: dict[int, _Flight] = {}

    def forward(self, microbatch: int, hidden: Tensor, labels: Tensor | None) -> Tensor:
        """Compute a microbatch's output.

        Args:
            microbatch: its number.
            hidden: token ids [batch, seq] on the first stage, hidden states [batch, seq, hidden] elsewhere.
            labels: token ids [batch, seq] on the last stage.

        Returns:
            The output, detached: hidden states, or the loss on the last stage.
        """
        leaf = None if self.stage.is_first else hidden.detach().requires_grad_()
        output = self.stage(hidden if leaf is None else leaf, labels)
        if self.stage.is_last:
            self.losses[microbatch] = output.detach()
        self._flights[microbatch] = _Flight(get_gradient_edge(output), leaf)
        detached: Tensor = output.detach()
        return detached

    def backward(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """Accumulate a microbatch's weight gradients and make that of its input.

        Args:
            microbatch: its number.
            gradient: that of its output; None on the last stage, whose loss counts 1 / microbatches.

        Returns:
            The gradient of its input; None on the first stage.
        """
        flight = self._flights.pop(microbatch)
        seed = self._seed if gradient is None else gradient
        torch.autograd.backward((flight.root,), (seed,))
        return None if flight.leaf is None else flight.leaf.grad

    def input_backward(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """As `backward`, but the gradients of linear layers' weights are put off for `weight_backward`."""
        with self.weight_gradients.put_off(microbatch):
            return self.backward(microbatch, gradient)

    def weight_backward(self, microbatch: int) -> None:
        """Accumulate the weight gradients that `input_backward` put off."""
        self.weight_gradients.run(microbatch)

    def mean_loss(self) -> float:
        """The mean loss over the step's microbatches, and forget them."""
        total = sum(float(self.losses[microbatch]) for microbatch in sorted(self.losses)) * self._share
        self.losses.clear()
        return total
