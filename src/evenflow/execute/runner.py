"""Runs one stage's forwards and backwards and keeps what lies between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from evenflow.models import Microbatch, Stage
from evenflow.runtime import WeightGradients, local


@dataclass(frozen=True, slots=True)
class _Flight:
    """One microbatch between its forward and its backward: where its gradient starts and ends, and its share."""

    root: GradientEdge
    dtype: torch.dtype
    share: float
    leaf: Tensor | None


class StageRunner:
    """Forward and backward of one stage, microbatch by microbatch.

    Of an output only the root of its graph is kept, so that the tensor itself is freed once it was sent.

    Args:
        stage: the stage.
        microbatches: how many a step has.
        trains: whether there will be backwards; an evaluation leaves the stage's layers as they are.
    """

    def __init__(self, stage: Stage, microbatches: int, trains: bool = True) -> None:
        self.stage = stage
        self.weight_gradients = WeightGradients(stage) if trains else None
        queued = {id(own) for own in self.weight_gradients.parameters} if self.weight_gradients else set()
        self._plain = [own for own in stage.parameters() if own.requires_grad and id(own) not in queued]
        self._predicted = 1
        self._flights: dict[int, _Flight] = {}
        self._losses: dict[int, float] = {}
        self._shares: dict[int, float] = {}  # of the losses, until they are taken
        # To read a loss on a GPU is to wait for all work before it, so there they are copied to the host and read last.
        on_gpu = stage.is_last and stage.device.type == "cuda"
        self._copied = torch.empty(microbatches, pin_memory=True) if on_gpu else None

    def begin_step(self, predicted: int) -> None:
        """Say how many tokens the whole global batch predicts: the one place where losses and gradients get a scale.

        A microbatch's mean loss counts by its share in them, and so do its gradients, since they start from the loss.
        """
        self._predicted = predicted

    def forward(self, microbatch: int, hidden: Tensor, batch: Microbatch, draw: int | None = None) -> Tensor:
        """Compute a microbatch's output.

        Args:
            microbatch: its number.
            hidden: token ids [batch, seq] on the first stage, hidden states [batch, seq, hidden] elsewhere.
            batch: the microbatch itself.
            draw: what the microbatch's dropout is drawn from, the same number on every stage.

        Returns:
            The output, detached: hidden states, or on the last stage the mean loss over its learned tokens.
        """
        leaf = None if self.stage.is_first else hidden.detach().requires_grad_()
        share = batch.predicted / self._predicted if self.stage.is_last else 0.0
        output = self._run(hidden if leaf is None else leaf, batch, draw)
        self._flights[microbatch] = _Flight(get_gradient_edge(output), output.dtype, share, leaf)
        detached: Tensor = output.detach().contiguous()  # as it is sent; a block may put the sequence first
        self._note_loss(microbatch, detached, share)
        return detached

    def evaluate(self, microbatch: int, hidden: Tensor, batch: Microbatch) -> Tensor:
        """As `forward`, but nothing is kept for a backward."""
        with torch.no_grad():
            output = self._run(hidden, batch, None)
        self._note_loss(microbatch, output, batch.predicted / self._predicted if self.stage.is_last else 0.0)
        return output.contiguous()

    def _run(self, hidden: Tensor, batch: Microbatch, draw: int | None) -> Tensor:
        labels = batch.targets if self.stage.is_last else None
        output: Tensor = self.stage(hidden, labels, batch.ids, batch.positions, draw)
        return output

    def backward(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """Accumulate a microbatch's weight gradients and make that of its input.

        Args:
            microbatch: its number.
            gradient: that of its output; None on the last stage, whose loss counts its share of the tokens.

        Returns:
            The gradient of its input; None on the first stage.
        """
        flight = self._flights.pop(microbatch)
        own_share = torch.tensor(flight.share, dtype=flight.dtype, device=self.stage.device)
        seed = own_share if gradient is None else gradient
        fresh = [own for own in self._plain if own.grad is None]
        torch.autograd.backward((flight.root,), (seed,))
        input_gradient = None if flight.leaf is None else flight.leaf.grad
        if gradient is not None and input_gradient is not None and _share_memory(input_gradient, gradient):
            input_gradient = input_gradient.clone()  # it is sent while the buffer is received into again
        for own in fresh:
            self._separate(own, microbatch, gradient, input_gradient)
        return input_gradient

    def input_backward(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """As `backward`, but the gradients of linear layers' weights are put off for `weight_backward`."""
        assert self.weight_gradients is not None, "an evaluation has no backward"
        with self.weight_gradients.put_off(microbatch):
            return self.backward(microbatch, gradient)

    def weight_backward(self, microbatch: int) -> None:
        """Accumulate the weight gradients that `input_backward` put off."""
        assert self.weight_gradients is not None, "an evaluation has no backward"
        self.weight_gradients.run(microbatch)

    def keeps(self, microbatch: int, tensor: Tensor) -> bool:
        """Whether `weight_backward` still needs the memory of `tensor`."""
        return self.weight_gradients is not None and self.weight_gradients.holds(microbatch, local(tensor))

    def take_losses(self) -> tuple[float, ...]:
        """What each microbatch adds to the step's loss, by number, and forget it; empty but on the last stage."""
        if self._copied is not None:
            torch.cuda.current_stream(self.stage.device).synchronize()
            self._losses = {microbatch: float(self._copied[microbatch]) for microbatch in self._losses}
        losses = tuple(self._losses[own] * self._shares[own] for own in sorted(self._losses))
        self._losses.clear()
        self._shares.clear()
        return losses

    def _separate(self, parameter: nn.Parameter, microbatch: int, *others: Tensor | None) -> None:
        """Give a first gradient memory of its own.

        Autograd lets a parameter keep a tensor that nobody else holds, but a view of it may be in the queue for W,
        under way to another rank or in a receive buffer, and the next microbatch is added to the gradient in place.
        """
        gradient = parameter.grad
        if gradient is None:
            return
        if self.keeps(microbatch, gradient) or any(
            other is not None and _share_memory(gradient, other) for other in others
        ):
            parameter.grad = gradient.clone()

    def _note_loss(self, microbatch: int, output: Tensor, share: float) -> None:
        if not self.stage.is_last:
            return
        self._shares[microbatch] = share
        if self._copied is None:
            self._losses[microbatch] = float(output)
        else:
            self._copied[microbatch].copy_(output, non_blocking=True)
            self._losses[microbatch] = math.nan  # until it is read


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return local(one).untyped_storage().data_ptr() == local(other).untyped_storage().data_ptr()
