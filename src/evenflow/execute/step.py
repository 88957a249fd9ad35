"""A step of one rank: what it is given, what it has come to so far, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evenflow.errors import InputError
from evenflow.models import Microbatch

Tokens = Callable[[int], Microbatch | Tensor]  # plain token ids are a microbatch of which all is learned


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step on one rank.

    Attributes:
        loss: the mean loss over the step's predicted tokens (the same on every rank).
        grad_norm: the global gradient norm before clipping; zero in an evaluation.
        stop: whether any rank asked to stop after this step.
        begin_s: when the rank's step before ended.
        end_s: when this one did.
        spans: start and end of each action, in the program's order.
        losses: what each microbatch adds to it, by number; empty on ranks without the last stage.
        memory: what the executor's gauge said after each action that computes, and again after those that do not;
            empty without one.
        refused: whether the loss or the gradient norm was not finite and no rank updated anything for that.
    """

    loss: float
    grad_norm: float
    stop: bool
    begin_s: float
    end_s: float
    spans: tuple[tuple[float, float], ...]
    losses: tuple[float, ...]
    memory: tuple[int, ...] = ()
    refused: bool = False


@dataclass(slots=True)
class RunningStep:
    """The step under way: what it was given and what it has come to."""

    tokens: Tokens
    learning_rate: float
    want_stop: bool
    draw: int | None
    shapes: Sequence[tuple[int, ...]]  # of what crosses stages, by microbatch
    norms: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    losses: tuple[float, ...] = ()
    loss: float = 0.0
    stop: bool = False
    grad_norm: float = 0.0
    refused: bool = False

    def microbatch(self, number: int) -> Microbatch:
        """One that a stage is to compute.

        Raises:
            InputError: it has not the shape that this step's were said to have.
        """
        batch, shape = as_microbatch(self.tokens(number)), self.shapes[number][:-1]
        if batch.ids.shape != shape:
            raise InputError(
                f"microbatch {number} is {list(batch.ids.shape)}, and was to be {list(shape)}; run_step takes another "
                "`shape`, or `lengths`, which all ranks have to be given"
            )
        return batch

    def result(self, begin_s: float, end_s: float, moments: Sequence[float], memory: Sequence[int]) -> StepResult:
        """What the step came to; `moments` has start and end of each action in turn."""
        spans = tuple(zip(moments[::2], moments[1::2], strict=True))
        return StepResult(
            self.loss, self.grad_norm, self.stop, begin_s, end_s, spans, self.losses, tuple(memory), self.refused
        )


def as_microbatch(given: Microbatch | Tensor) -> Microbatch:
    """Plain token ids as a microbatch of which all is learned."""
    return Microbatch(given) if isinstance(given, Tensor) else given
