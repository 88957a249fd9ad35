"""The executor: reads a program and runs one rank of it.

A short loop over actions. Where buffers come from, when tensors are freed, in which order messages go: the
program has decided all of it, and `program.verify` has proved it. Each action's span is recorded; waiting for
an input is the gap before the action that needs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from evenflow.execute.buffers import BufferPool
from evenflow.execute.runner import StageRunner
from evenflow.models import Stage
from evenflow.program import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    Program,
    ReceiveBackward,
    ReceiveForward,
    ReduceGrad,
    ReduceTied,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    WeightBackward,
)
from evenflow.runtime import Optimizer, Transfer, Transport


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step on one rank.

    Attributes:
        loss: the mean loss over the step's microbatches (the same on every rank).
        grad_norm: the global gradient norm before clipping.
        stop: whether any rank asked to stop after this step.
        begin_s: when the rank's step before ended.
        spans: start and end of each action, in the program's order.
    """

    loss: float
    grad_norm: float
    stop: bool
    begin_s: float
    spans: tuple[tuple[float, float], ...]


class Executor:
    """Runs one rank of a program, step after step.

    Args:
        program: a verified program.
        rank: which rank this is.
        stages: this rank's stages, by number.
        transport: how tensors travel.
        optimizer: over this rank's parameters.
        boundary: the shape of what crosses stages, [batch, seq, hidden].
    """

    def __init__(
        self,
        program: Program,
        rank: int,
        stages: Mapping[int, Stage],
        transport: Transport,
        optimizer: Optimizer,
        boundary: tuple[int, ...],
    ) -> None:
        self.program = program
        self.actions = program.ranks[rank]
        self.transport = transport
        self.optimizer = optimizer
        self.runners = {number: StageRunner(stage, program.microbatches) for number, stage in stages.items()}
        self.pool = BufferPool(boundary, torch.float32)
        self._receives: dict[Action, tuple[Transfer, Tensor]] = {}
        self._sends: dict[Action, Transfer] = {}
        self._outputs: dict[Action, Tensor] = {}
        self._inputs: dict[tuple[int, int], Tensor] = {}
        self._last_stage = program.stages - 1
        self._finished = time.perf_counter()

    def run_step(self, tokens: Callable[[int], Tensor], learning_rate: float, want_stop: bool = False) -> StepResult:
        """Run the program once.

        Args:
            tokens: the token ids [batch, seq] of a microbatch.
            learning_rate: this step's.
            want_stop: ask all ranks to stop after this step.

        Raises:
            PeerLostError: another rank is gone.
        """
        begin = self._finished
        spans: list[tuple[float, float]] = []
        norms, loss, stop, grad_norm = torch.empty(0), 0.0, False, 0.0
        clock = time.perf_counter
        for action in self.actions:
            match action:
                case Forward(stage, microbatch):
                    hidden = self._input(stage, microbatch, tokens)
                    labels = tokens(microbatch) if stage == self._last_stage else None
                    start = clock()
                    output = self.runners[stage].forward(microbatch, hidden, labels)
                    if stage < self._last_stage:
                        self._outputs[action] = output
                case Backward(stage, microbatch):
                    gradient = self._arrived(ReceiveBackward(stage, microbatch), stage < self._last_stage)
                    start = clock()
                    self._backward(action, gradient)
                case Norm():
                    start = clock()
                    norms = self.optimizer.gradient_norms()
                case Step():
                    norms, loss, stop = self._combine(norms, want_stop)
                    start = clock()
                    grad_norm = self.optimizer.step(norms, learning_rate)
                case InputBackward() | WeightBackward() | ReduceTied() | ReduceGrad():
                    raise AssertionError(f"{action} is not run yet; `train` refuses schedules that have it")
                case _:
                    start = clock()
                    self._communicate(action)
            spans.append((start, clock()))
        self._finished = spans[-1][1]
        return StepResult(loss, grad_norm, stop, begin, tuple(spans))

    def _input(self, stage: int, microbatch: int, tokens: Callable[[int], Tensor]) -> Tensor:
        received = self._arrived(ReceiveForward(stage, microbatch), stage > 0)
        if received is None:
            return tokens(microbatch)
        self._inputs[stage, microbatch] = received
        return received

    def _arrived(self, receive: ReceiveForward | ReceiveBackward, expected: bool) -> Tensor | None:
        """Wait for a receive; None where nothing crosses."""
        if not expected:
            return None
        transfer, buffer = self._receives.pop(receive)
        transfer.wait()
        return buffer

    def _backward(self, action: Backward, gradient: Tensor | None) -> None:
        """Run a backward, then give its buffers back: nobody reads them any more."""
        input_gradient = self.runners[action.stage].backward(action.microbatch, gradient)
        if gradient is not None:
            self.pool.give_back(gradient)
        if input_gradient is not None:
            self._outputs[action] = input_gradient
            self.pool.give_back(self._inputs.pop((action.stage, action.microbatch)))

    def _communicate(
        self,
        action: SendForward | SendBackward | ReceiveForward | ReceiveBackward | ReleaseForward | ReleaseBackward,
    ) -> None:
        stage_rank = self.program.stage_rank
        match action:
            case SendForward(stage, microbatch):
                output = self._outputs[Forward(stage, microbatch)]
                self._sends[action] = self.transport.send(output, stage_rank[stage + 1], self._tag(action))
            case SendBackward(stage, microbatch):
                output = self._outputs[Backward(stage, microbatch)]
                self._sends[action] = self.transport.send(output, stage_rank[stage - 1], self._tag(action))
            case ReceiveForward(stage, microbatch):
                self._post(action, stage_rank[stage - 1], self._tag(SendForward(stage - 1, microbatch)))
            case ReceiveBackward(stage, microbatch):
                self._post(action, stage_rank[stage + 1], self._tag(SendBackward(stage + 1, microbatch)))
            case ReleaseForward(stage, microbatch):
                self._sends.pop(SendForward(stage, microbatch)).wait()
                del self._outputs[Forward(stage, microbatch)]
            case ReleaseBackward(stage, microbatch):
                self._sends.pop(SendBackward(stage, microbatch)).wait()
                del self._outputs[Backward(stage, microbatch)]
            case _:
                assert_never(action)

    def _post(self, receive: ReceiveForward | ReceiveBackward, source: int, tag: int) -> None:
        buffer = self.pool.take()
        self._receives[receive] = (self.transport.receive(buffer, source, tag), buffer)

    def _tag(self, send: SendForward | SendBackward) -> int:
        """A number that no other message of this step has."""
        message = send.stage * self.program.microbatches + send.microbatch
        return 2 * message + isinstance(send, SendBackward)

    def _combine(self, norms: Tensor, want_stop: bool) -> tuple[Tensor, float, bool]:
        """Sum over all ranks, in one message: the gradient norms, the last stage's loss, the wish to stop."""
        own_loss = sum(runner.mean_loss() for runner in self.runners.values())
        message = torch.cat([norms, torch.tensor([own_loss, float(want_stop)], dtype=norms.dtype)])
        self.transport.sum(message)
        return message[:-2], float(message[-2]), bool(message[-1])
