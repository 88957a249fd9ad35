"""The executor: reads a program and runs one rank of it.

A short loop over actions, each bound once to what it comes to on this rank. Where buffers come from, when tensors
are freed, in which order messages go: the program has decided all of it, and `program.verify` has proved it. Each
action's span is recorded; waiting for an input is the gap before the action that needs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from math import isfinite
from typing import NoReturn, assert_never

import torch
from torch import Tensor

from evenflow.errors import EvenflowError, InputError, PeerLostError, RankError, first_line
from evenflow.execute.buffers import BufferPool
from evenflow.execute.notes import notes_of
from evenflow.execute.runner import StageRunner
from evenflow.execute.step import RunningStep, StepResult, Tokens, as_microbatch
from evenflow.launch import Heartbeat
from evenflow.models import Microbatch, Stage, draw_of
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
    Reduction,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    WeightBackward,
    action_text,
    buffers_at_once,
)
from evenflow.runtime import (
    TORCH_DTYPES,
    Clock,
    Mesh,
    Optimizer,
    Reductions,
    Transfer,
    Transport,
    clock_of,
    global_norm,
)
from evenflow.spec import Dtype

_Do = Callable[[RunningStep], None]
_COMPUTE = (Forward, Backward, InputBackward, WeightBackward, Norm, Step)  # what others take is in buffers made once
_Key = tuple[int, int]  # stage and microbatch: cheaper to make and to look up than an action


class Executor:
    """Runs one rank of a program, step after step.

    A program that is forward only evaluates: its forwards keep nothing, and its step ends with the mean loss.

    Args:
        program: a verified program.
        rank: which rank this is.
        stages: this rank's stages, by number.
        transport: how tensors travel.
        optimizer: over this rank's parameters; None where the program is forward only.
        boundary: the shape of what crosses stages, [batch, seq, hidden].
        reductions: how gradients are added over replicas and copies of tied weights, where the program does.
        mesh: where this process is among those of other replicas and shards; by default there are none.
        clock: marks when actions start and end; by default that of the stages' device. It may be changed between steps.
        gauge: the bytes that this process holds, asked after each action that computes; by default nobody asks.
        crossing: the type of what crosses stages.
        heartbeat: notes each action as it begins; by default one that nobody sees.

    Attributes:
        refuses_nan: whether a step whose loss or gradient norm is not finite updates nothing. Every rank has the same
            sums before it updates, so all of them end such a step alike, with no word between them.
    """

    def __init__(
        self,
        program: Program,
        rank: int,
        stages: Mapping[int, Stage],
        transport: Transport,
        optimizer: Optimizer | None,
        boundary: tuple[int, ...],
        clock: Clock | None = None,
        *,
        reductions: Reductions | None = None,
        mesh: Mesh | None = None,
        gauge: Callable[[], int] | None = None,
        crossing: Dtype = "fp32",
        heartbeat: Heartbeat | None = None,
    ) -> None:
        device = next(iter(stages.values())).device
        self.program = program
        self.rank = rank
        self.actions = program.ranks[rank]
        self.transport = transport
        self.optimizer = optimizer
        self.refuses_nan = False
        self.reductions = reductions
        self._replicas = mesh.axes.dp if mesh else 1
        self._first_microbatch = mesh.at.dp * program.microbatches if mesh else 0  # of the global batch
        self._name = f"rank {rank}" if mesh is None else mesh.process_name
        self._counts_loss = mesh is None or mesh.at.tp == 0  # which all shards of a stage know
        self.runners = {
            number: StageRunner(stage, program.microbatches, not program.forward_only)
            for number, stage in stages.items()
        }
        self.crossing = crossing
        self.pool = BufferPool(buffers_at_once(program, rank), TORCH_DTYPES[crossing], device)
        self._boundary = boundary
        self._receives: dict[_Key, tuple[Transfer, Tensor]] = {}
        self._gradient_receives: dict[_Key, tuple[Transfer, Tensor]] = {}
        self._sends: dict[_Key, Transfer] = {}
        self._gradient_sends: dict[_Key, Transfer] = {}
        self._outputs: dict[_Key, Tensor] = {}
        self._gradients: dict[_Key, Tensor] = {}  # of stages' inputs
        self._buffers: dict[_Key, list[Tensor]] = {}  # from the pool, by who reads them
        self._last_stage = program.stages - 1
        self._here = frozenset(stages)
        self.clock = clock or clock_of(device)
        self.gauge = gauge
        self.heartbeat = heartbeat or Heartbeat()
        self._finished = time.perf_counter()
        self._bound = tuple(
            (action, self._bind(action), note, isinstance(action, _COMPUTE))
            for action, note in zip(self.actions, notes_of(program, rank), strict=True)
        )

    def run_step(
        self,
        tokens: Tokens,
        learning_rate: float = 0.0,
        want_stop: bool = False,
        shape: tuple[int, int] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        predicted: int | None = None,
        draw: int | None = None,
    ) -> StepResult:
        """Run the program once.

        Args:
            tokens: a microbatch by its number.
            learning_rate: this step's; an evaluation has none.
            want_stop: ask all ranks to stop after this step.
            shape: (batch, seq) of this step's microbatches, the same on every rank; by default that of the step before.
            lengths: seq of each microbatch, the same on every rank, where they differ; none is longer than the shape's.
            predicted: tokens that the whole global batch predicts; by default those of this pipeline, where there is
                no other.
            draw: what dropout is drawn from: one number of seed and step, the same for all.

        Raises:
            RankError: an action failed; whatever it left is lost, so this executor runs no more.
            PeerLostError: another rank is gone.
            InputError: a microbatch has another shape, or no token of the step is to be learned.
        """
        if shape is not None:
            self._boundary = (*shape, self._boundary[-1])
        self.pool.reshape(self._boundary)
        learned = self._learned(tokens, predicted)
        for runner in self.runners.values():
            runner.begin_step(learned)
        running = RunningStep(tokens, learning_rate, want_stop, draw, self._shapes(lengths))
        evaluates = self.program.forward_only
        mark, gauge, note = self.clock.mark, self.gauge, self.heartbeat.takes
        memory: list[int] = []
        held = gauge() if gauge is not None else 0
        action: Action | None = None
        try:
            with self._evaluating() if evaluates else nullcontext():
                for action, do, own_note, computes in self._bound:  # noqa: B007 - the message of a failure names it
                    note(own_note)
                    do(running)
                    mark()
                    if gauge is not None:
                        held = gauge() if computes else held
                        memory.append(held)
            action = None
            if evaluates:
                self._combine(running)
            moments = self.clock.read()
        except Exception as error:
            self._explain(error, action)
        begin = self._finished
        # The last moment is when the device was done; an evaluation ends with its sum, which is no action.
        self._finished = moments[-1] if moments and not evaluates else time.perf_counter()
        return running.result(begin, self._finished, moments, memory)

    def _learned(self, tokens: Tokens, predicted: int | None) -> int:
        """How many tokens the whole batch predicts: this pipeline's, where there is no other and nobody says.

        Raises:
            InputError: none.
        """
        if predicted is None:
            assert self._replicas == 1, "a replica does not know what the others predict"
            predicted = sum(as_microbatch(tokens(own)).predicted for own in range(self.program.microbatches))
        if predicted < 1:
            raise InputError(
                f"all labels of the step's {self.program.microbatches} microbatches are masked, so there is nothing to "
                "learn from; a batch with at least one label that is not -100 would do"
            )
        return predicted

    def _has_input(self) -> None:
        """What an action waited for is here: it computes from now on."""
        self.heartbeat.has_input()
        self.clock.mark()

    def starts_now(self) -> None:
        """The next step begins now: what was done since the last one is none of its time."""
        self._finished = time.perf_counter()

    def _bind(self, action: Action) -> _Do:
        """What an action comes to on this rank, decided once: a step then only calls it.

        It marks when its action starts, after waiting for its input; tensors that it holds by name are let go with
        its return.
        """
        match action:
            case Forward(stage, microbatch):
                return partial(self._do_forward, stage, microbatch)
            case Backward(stage, microbatch):
                return partial(self._do_backward, stage, microbatch, False)
            case InputBackward(stage, microbatch):
                return partial(self._do_backward, stage, microbatch, True)
            case WeightBackward(stage, microbatch):
                return partial(self._do_weight_backward, stage, microbatch)
            case Norm():
                return self._do_norm
            case Step():
                return self._do_step
            case ReduceTied() | ReduceGrad():
                return partial(self._do_reduce, action)
            case ReleaseForward(stage, microbatch):
                return partial(self._release, self._sends, self._outputs, (stage, microbatch))
            case ReleaseBackward(stage, microbatch):
                return partial(self._release, self._gradient_sends, self._gradients, (stage, microbatch))
            case _:
                return self._bind_transfer(action)

    def _bind_transfer(self, action: SendForward | SendBackward | ReceiveForward | ReceiveBackward) -> _Do:
        """A transfer's start; a message's tag is that of what its sender made."""
        key = stage, microbatch = action.stage, action.microbatch
        where = self.program.stage_rank
        match action:
            case SendForward():
                tag = self._tag(stage, microbatch, 0)
                return partial(self._send, self._sends, self._outputs, key, where[stage + 1], tag)
            case SendBackward():
                tag = self._tag(stage, microbatch, 1)
                return partial(self._send, self._gradient_sends, self._gradients, key, where[stage - 1], tag)
            case ReceiveForward():
                tag = self._tag(stage - 1, microbatch, 0)
                return partial(self._receive, self._receives, key, where[stage - 1], tag)
            case ReceiveBackward():
                tag = self._tag(stage + 1, microbatch, 1)
                return partial(self._receive, self._gradient_receives, key, where[stage + 1], tag)
            case _:
                assert_never(action)

    def _do_forward(self, stage: int, microbatch: int, running: RunningStep) -> None:
        batch = running.microbatch(microbatch)
        hidden = batch.ids if stage == 0 else self._input(stage, microbatch)
        self._has_input()
        self._forward(stage, microbatch, hidden, batch, running.draw)

    def _do_backward(self, stage: int, microbatch: int, halves: bool, running: RunningStep) -> None:  # noqa: ARG002 - as all
        gradient = self._output_gradient(stage, microbatch)
        self._has_input()
        self._backward(stage, microbatch, gradient, halves)

    def _do_weight_backward(self, stage: int, microbatch: int, running: RunningStep) -> None:  # noqa: ARG002 - as all
        self.clock.mark()
        self.runners[stage].weight_backward(microbatch)
        self._free(stage, microbatch)

    def _do_norm(self, running: RunningStep) -> None:
        assert self.optimizer is not None, "a program that trains has an optimizer"
        if self.reductions is not None:
            self.reductions.finish()
        self._has_input()
        running.norms = self.optimizer.gradient_norms()

    def _do_step(self, running: RunningStep) -> None:
        assert self.optimizer is not None, "a program that trains has an optimizer"
        self._combine(running)
        self._has_input()
        norm = global_norm(running.norms)
        if self.refuses_nan and not (isfinite(running.loss) and isfinite(norm)):
            running.grad_norm, running.refused = norm, True
            return
        running.grad_norm = self.optimizer.step(running.norms, running.learning_rate)
        if self.reductions is not None:
            self.reductions.spread()

    def _do_reduce(self, action: Reduction, running: RunningStep) -> None:  # noqa: ARG002 - as all
        assert self.reductions is not None, "a program that reduces is given what reduces"
        self.clock.mark()
        self.reductions.start(action)

    def _shapes(self, lengths: Sequence[int] | None) -> Sequence[tuple[int, ...]]:
        """What crosses stages of each microbatch; receive buffers are those of the longest that there may be."""
        if lengths is None:
            return [self._boundary] * self.program.microbatches
        batch, longest, width = self._boundary
        assert len(lengths) == self.program.microbatches, f"{len(lengths)} lengths of {self.program.microbatches}"
        assert max(lengths) <= longest, f"a microbatch of {max(lengths)} tokens where {longest} are the most"
        return [(batch, length, width) for length in lengths]

    def _input(self, stage: int, microbatch: int) -> Tensor:
        """A later stage's input: what was received, or the output of the stage before on this rank."""
        if stage - 1 in self._here:
            return self._outputs.pop((stage - 1, microbatch))
        key = stage, microbatch
        transfer, buffer = self._receives.pop(key)
        transfer.wait()
        self._buffers[key] = [buffer]
        return buffer

    def _output_gradient(self, stage: int, microbatch: int) -> Tensor | None:
        """The gradient of a stage's output: received, or made on this rank; None on the last stage."""
        if stage == self._last_stage:
            return None
        if stage + 1 in self._here:
            return self._gradients.pop((stage + 1, microbatch))
        transfer, buffer = self._gradient_receives.pop((stage, microbatch))
        transfer.wait()
        return buffer

    def _forward(self, stage: int, microbatch: int, hidden: Tensor, batch: Microbatch, draw: int | None) -> None:
        runner = self.runners[stage]
        if self.program.forward_only:
            output = runner.evaluate(microbatch, hidden, batch)
        else:
            own_draw = None if draw is None else draw_of(draw, self._first_microbatch + microbatch)
            output = runner.forward(microbatch, hidden, batch, own_draw)
        if stage < self._last_stage:
            self._outputs[stage, microbatch] = output
        if self.program.forward_only:
            self._free(stage, microbatch)

    def _backward(self, stage: int, microbatch: int, gradient: Tensor | None, halves: bool) -> None:
        """Run a backward, then give back the buffers that nobody reads any more."""
        runner = self.runners[stage]
        run = runner.input_backward if halves else runner.backward
        input_gradient = run(microbatch, gradient)
        if input_gradient is not None:
            self._gradients[stage, microbatch] = input_gradient
        if gradient is not None and stage + 1 not in self._here:
            if halves:  # what a linear layer queues for W may be that very buffer
                self._buffers.setdefault((stage, microbatch), []).append(gradient)
            else:
                self.pool.give_back(gradient)
        if not halves:
            self._free(stage, microbatch)

    def _free(self, stage: int, microbatch: int) -> None:
        """Give back the buffers that a microbatch was received into."""
        for buffer in self._buffers.pop((stage, microbatch), ()):
            self.pool.give_back(buffer)

    def _send(
        self,
        sends: dict[_Key, Transfer],
        made: dict[_Key, Tensor],
        key: _Key,
        rank: int,
        tag: int,
        running: RunningStep,  # noqa: ARG002 - as all
    ) -> None:
        self.clock.mark()
        sends[key] = self.transport.send(made[key], rank, tag)

    def _receive(
        self,
        receives: dict[_Key, tuple[Transfer, Tensor]],
        key: _Key,
        rank: int,
        tag: int,
        running: RunningStep,
    ) -> None:
        self.clock.mark()
        buffer = self.pool.take(running.shapes[key[1]])
        receives[key] = self.transport.receive(buffer, rank, tag), buffer

    def _release(
        self,
        sends: dict[_Key, Transfer],
        made: dict[_Key, Tensor],
        key: _Key,
        running: RunningStep,  # noqa: ARG002 - as all
    ) -> None:
        self.clock.mark()
        sends.pop(key).wait()
        del made[key]

    def _tag(self, stage: int, microbatch: int, is_gradient: int) -> int:
        """A number that no other message of this step has."""
        return 2 * (stage * self.program.microbatches + microbatch) + is_gradient

    def _combine(self, running: RunningStep) -> None:
        """Sum over all ranks, in one message: the gradient norms, the last stage's loss, the wish to stop."""
        runner = self.runners.get(self._last_stage)
        running.losses = runner.take_losses() if runner else ()
        own_loss = sum(running.losses) if self._counts_loss else 0.0
        own = torch.tensor([own_loss, float(running.want_stop)], dtype=torch.float64)
        message = torch.cat([running.norms, own])
        self.transport.sum(message)
        running.norms, running.loss, running.stop = message[:-2], float(message[-2]), bool(message[-1])

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within, no stage drops out; afterwards each is as it was, since it may train under another program."""
        training = [runner.stage for runner in self.runners.values() if runner.stage.training]
        for stage in training:
            stage.eval()
        try:
            yield
        finally:
            for stage in training:
                stage.train()

    def _explain(self, error: Exception, action: Action | None) -> NoReturn:
        """Raise what names this rank and the action at fault; a lost peer stays one, since its cause is elsewhere."""
        where = action_text(action) if action else "the end of its step"
        if isinstance(error, PeerLostError):
            raise PeerLostError(f"{self._name} in {where}: {error}") from error
        if isinstance(error, EvenflowError):
            raise error
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise RankError(f"{self._name} failed in {where}: {cause}") from error
