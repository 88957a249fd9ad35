"""The executor: reads a program and runs one rank of it.

A short loop over actions. Where buffers come from, when tensors are freed, in which order messages go: the
program has decided all of it, and `program.verify` has proved it. Each action's span is recorded; waiting for
an input is the gap before the action that needs it.
"""

from __future__ import annotations

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
from evenflow.runtime import Clock, Optimizer, Transfer, Transport, clock_of


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

    Attributes:
        action: the action that it runs, or ran last: what an error came out of.
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
        self.rank = rank
        self.actions = program.ranks[rank]
        self.action: Action = self.actions[0]
        self.transport = transport
        self.optimizer = optimizer
        self.runners = {number: StageRunner(stage, program.microbatches) for number, stage in stages.items()}
        device = next(iter(stages.values())).device
        self.pool = BufferPool(boundary, torch.float32, device)
        self._receives: dict[Action, tuple[Transfer, Tensor]] = {}
        self._sends: dict[Action, Transfer] = {}
        self._outputs: dict[Action, Tensor] = {}
        self._gradients: dict[tuple[int, int], Tensor] = {}  # of stages' inputs
        self._buffers: dict[tuple[int, int], list[Tensor]] = {}  # from the pool, by who reads them
        self._last_stage = program.stages - 1
        self._clock: Clock = clock_of(device)
        self._clock.mark()
        self._finished = self._clock.read()[0]

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
        norms, loss, stop, grad_norm = torch.empty(0), 0.0, False, 0.0
        mark = self._clock.mark
        for action in self.actions:
            self.action = action
            match action:
                case Forward(stage, microbatch):
                    hidden = self._input(stage, microbatch, tokens)
                    labels = tokens(microbatch) if stage == self._last_stage else None
                    mark()
                    output = self.runners[stage].forward(microbatch, hidden, labels)
                    if stage < self._last_stage:
                        self._outputs[action] = output
                case Backward(stage, microbatch) | InputBackward(stage, microbatch):
                    gradient = self._output_gradient(stage, microbatch)
                    mark()
                    self._backward(action, gradient)
                case WeightBackward(stage, microbatch):
                    mark()
                    self.runners[stage].weight_backward(microbatch)
                    self._free(stage, microbatch)
                case Norm():
                    mark()
                    norms = self.optimizer.gradient_norms()
                case Step():
                    norms, loss, stop = self._combine(norms, want_stop)
                    mark()
                    grad_norm = self.optimizer.step(norms, learning_rate)
                case ReduceTied() | ReduceGrad():
                    raise AssertionError(
                        f"{action} is not run yet; programs for one replica of untied stages have none"
                    )
                case _:
                    mark()
                    self._communicate(action)
            mark()
        moments = self._clock.read()
        self._finished = moments[-1]
        return StepResult(loss, grad_norm, stop, begin, tuple(zip(moments[::2], moments[1::2], strict=True)))

    def _input(self, stage: int, microbatch: int, tokens: Callable[[int], Tensor]) -> Tensor:
        """A stage's input: token ids, what was received, or the output of the stage before on this rank."""
        if stage == 0:
            return tokens(microbatch)
        if self._is_here(stage - 1):
            return self._outputs.pop(Forward(stage - 1, microbatch))
        buffer = self._arrived(ReceiveForward(stage, microbatch))
        self._buffers[stage, microbatch] = [buffer]
        return buffer

    def _output_gradient(self, stage: int, microbatch: int) -> Tensor | None:
        """The gradient of a stage's output: received, or made on this rank; None on the last stage."""
        if stage == self._last_stage:
            return None
        if self._is_here(stage + 1):
            return self._gradients.pop((stage + 1, microbatch))
        return self._arrived(ReceiveBackward(stage, microbatch))

    def _is_here(self, stage: int) -> bool:
        return self.program.stage_rank[stage] == self.rank

    def _arrived(self, receive: ReceiveForward | ReceiveBackward) -> Tensor:
        """Wait for a receive."""
        transfer, buffer = self._receives.pop(receive)
        transfer.wait()
        return buffer

    def _backward(self, action: Backward | InputBackward, gradient: Tensor | None) -> None:
        """Run a backward, then give back the buffers that nobody reads any more."""
        stage, microbatch = action.stage, action.microbatch
        runner = self.runners[stage]
        halves = isinstance(action, InputBackward)
        run = runner.input_backward if halves else runner.backward
        input_gradient = run(microbatch, gradient)
        if input_gradient is not None:
            self._gradients[stage, microbatch] = input_gradient
        if gradient is not None and stage < self._last_stage and not self._is_here(stage + 1):
            if halves and runner.weight_gradients.holds(microbatch, gradient):
                self._buffers.setdefault((stage, microbatch), []).append(gradient)
            else:
                self.pool.give_back(gradient)
        if not halves:
            self._free(stage, microbatch)

    def _free(self, stage: int, microbatch: int) -> None:
        """Give back the buffers that a microbatch was received into."""
        for buffer in self._buffers.pop((stage, microbatch), ()):
            self.pool.give_back(buffer)

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
                output = self._gradients[stage, microbatch]
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
                del self._gradients[stage, microbatch]
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
