"""Legality as code: what every program must satisfy before anything simulates or runs it.

1. Each stage computes each microbatch's forward and backward exactly once, on its own rank.
2. Tensors live as they should: nothing is used before it is made or after it is freed, and nothing is left over.
3. Sends and receives pair up, in the same order at both ends of every directed edge (transports without
   tags need that), and every rank ends with one NORM and one STEP.
4. Taken together the ranks finish even if a send completes only once its receive is posted.

Each failure names the rank, the action and the reason.
"""

from __future__ import annotations

from collections import Counter
from typing import assert_never

from evenflow.errors import ProgramError
from evenflow.program.actions import (
    Action,
    Backward,
    Forward,
    Norm,
    ReceiveBackward,
    ReceiveForward,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
)
from evenflow.program.program import Program
from evenflow.program.text import action_text


def verify(program: Program) -> None:
    """Check all rules.

    Raises:
        ProgramError: a rule is broken; the text names the rank, the action and the reason.
    """
    _check_shape(program)
    for rank, actions in enumerate(program.ranks):
        _RankState(program, rank).check(actions)
    _check_edges(program)
    _check_progress(program)


def _check_shape(program: Program) -> None:
    if not program.ranks or not program.stage_rank:
        raise ProgramError("a program needs at least one rank and one stage")
    for stage, rank in enumerate(program.stage_rank):
        if not 0 <= rank < len(program.ranks):
            raise ProgramError(f"stage {stage} is on rank {rank}, but ranks run from 0 to {len(program.ranks) - 1}")


class _RankState:
    """What one rank holds while its actions are read in order."""

    def __init__(self, program: Program, rank: int) -> None:
        self.program = program
        self.rank = rank
        self.last_stage = program.stages - 1
        self.counts: Counter[Action] = Counter()
        self.live: set[Action] = set()  # outputs, gradients and buffers, by the action that made them

    def check(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            if not isinstance(action, Norm | Step):
                self._check_place(action.stage, action.microbatch, action)
            if self.counts[Step()]:
                self._fail(action, "it comes after STEP")
            if self.counts[Norm()] and not isinstance(action, Norm | Step):
                self._fail(action, "it comes after NORM")
            self.counts[action] += 1
            if self.counts[action] > 1:
                self._fail(action, "it appears twice")
            self._take(action)
        for needed in self._owed():
            if not self.counts[needed]:
                self._fail(needed, "it is missing")

    def _take(self, action: Action) -> None:
        match action:
            case Forward() | Backward():
                self._take_compute(action)
            case Norm():
                if self.live:
                    self._fail(action, f"{action_text(self._any_live())} is still held")
            case Step():
                if not self.counts[Norm()]:
                    self._fail(action, "NORM has not run")
            case _:
                self._take_message(action)

    def _take_compute(self, action: Forward | Backward) -> None:
        stage, microbatch = action.stage, action.microbatch
        match action:
            case Forward():
                if stage > 0:
                    self._use(ReceiveForward(stage, microbatch), action, "its input was not received")
                self.live.add(action)
            case Backward():
                self._use(Forward(stage, microbatch), action, "its forward has not run")
                if stage < self.last_stage:
                    self._use(ReceiveBackward(stage, microbatch), action, "its output gradient was not received")
                self.live -= {
                    Forward(stage, microbatch),
                    ReceiveForward(stage, microbatch),
                    ReceiveBackward(stage, microbatch),
                }
            case _:
                assert_never(action)

    def _take_message(
        self,
        action: SendForward | SendBackward | ReceiveForward | ReceiveBackward | ReleaseForward | ReleaseBackward,
    ) -> None:
        stage, microbatch = action.stage, action.microbatch
        match action:
            case SendForward() | ReceiveBackward():
                if stage == self.last_stage:
                    self._fail(action, "the last stage has nobody after it")
            case SendBackward() | ReceiveForward():
                if stage == 0:
                    self._fail(action, "the first stage has nobody before it")
            case ReleaseForward():
                self._use(SendForward(stage, microbatch), action, "it was not sent")
                self.live.discard(SendForward(stage, microbatch))
                return
            case ReleaseBackward():
                self._use(SendBackward(stage, microbatch), action, "it was not sent")
                self.live.discard(SendBackward(stage, microbatch))
                return
            case _:
                assert_never(action)
        if isinstance(action, SendForward) and not self.counts[Forward(stage, microbatch)]:
            self._fail(action, "its output does not exist here")
        if isinstance(action, SendBackward) and not self.counts[Backward(stage, microbatch)]:
            self._fail(action, "its input gradient does not exist here")
        self.live.add(action)

    def _owed(self) -> list[Action]:
        """What must have happened by the end, in an order that names the cause before its consequences."""
        owed: list[Action] = []
        for stage, rank in enumerate(self.program.stage_rank):
            if rank != self.rank:
                continue
            for microbatch in range(self.program.microbatches):
                owed += [Forward(stage, microbatch), Backward(stage, microbatch)]
                if stage < self.last_stage:
                    owed.append(SendForward(stage, microbatch))
                if stage > 0:
                    owed.append(SendBackward(stage, microbatch))
        return [*owed, Norm(), Step()]

    def _check_place(self, stage: int, microbatch: int, action: Action) -> None:
        if not 0 <= stage <= self.last_stage or self.program.stage_rank[stage] != self.rank:
            self._fail(action, f"stage {stage} is not on this rank")
        if not 0 <= microbatch < self.program.microbatches:
            self._fail(action, f"microbatches run from 0 to {self.program.microbatches - 1}")

    def _use(self, made_by: Action, action: Action, reason: str) -> None:
        if made_by not in self.live:
            self._fail(action, reason)

    def _any_live(self) -> Action:
        return min(self.live, key=action_text)

    def _fail(self, action: Action, reason: str) -> None:
        raise ProgramError(f"rank {self.rank}: {action_text(action)}: {reason}")


def _check_edges(program: Program) -> None:
    """Both ends of every directed edge between two ranks must see the same messages in the same order."""
    sent: dict[tuple[int, int], list[Action]] = {}
    received: dict[tuple[int, int], list[Action]] = {}
    for rank, actions in enumerate(program.ranks):
        for action in actions:
            match action:
                case SendForward(stage, _):
                    sent.setdefault((rank, program.stage_rank[stage + 1]), []).append(action)
                case SendBackward(stage, _):
                    sent.setdefault((rank, program.stage_rank[stage - 1]), []).append(action)
                case ReceiveForward(stage, microbatch):
                    edge = (program.stage_rank[stage - 1], rank)
                    received.setdefault(edge, []).append(SendForward(stage - 1, microbatch))
                case ReceiveBackward(stage, microbatch):
                    edge = (program.stage_rank[stage + 1], rank)
                    received.setdefault(edge, []).append(SendBackward(stage + 1, microbatch))
                case _:
                    pass
    for edge in sorted(sent.keys() | received.keys()):
        outgoing, incoming = sent.get(edge, []), received.get(edge, [])
        for position in range(max(len(outgoing), len(incoming))):
            out = action_text(outgoing[position]) if position < len(outgoing) else "nothing"
            into = action_text(incoming[position]) if position < len(incoming) else "nothing"
            if out != into:
                raise ProgramError(
                    f"rank {edge[0]} to rank {edge[1]}: message {position} is {out} where it is sent, "
                    f"but {into} is expected where it is received"
                )


def _check_progress(program: Program) -> None:
    """Run all ranks symbolically: a send completes once its receive is posted, and NORM waits for every rank."""
    position = [0] * len(program.ranks)
    done: set[Action] = set()  # posted receives, started sends
    at_norm: set[int] = set()
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(program.ranks):
            while position[rank] < len(actions) and _can_take(actions[position[rank]], done, at_norm, program):
                action = actions[position[rank]]
                if isinstance(action, Norm):
                    at_norm.add(rank)
                done.add(action)
                position[rank] += 1
                moved = True
    stuck = [
        f"rank {rank} at {action_text(actions[position[rank]])}"
        for rank, actions in enumerate(program.ranks)
        if position[rank] < len(actions)
    ]
    if stuck:
        raise ProgramError(f"deadlock: {', '.join(stuck)} wait for each other for ever")


def _can_take(action: Action, done: set[Action], at_norm: set[int], program: Program) -> bool:
    match action:
        case Forward(stage, microbatch):
            return stage == 0 or SendForward(stage - 1, microbatch) in done
        case Backward(stage, microbatch):
            return stage == program.stages - 1 or SendBackward(stage + 1, microbatch) in done
        case ReleaseForward(stage, microbatch):
            return ReceiveForward(stage + 1, microbatch) in done
        case ReleaseBackward(stage, microbatch):
            return ReceiveBackward(stage - 1, microbatch) in done
        case Step():
            return len(at_norm) == len(program.ranks)
        case SendForward() | SendBackward() | ReceiveForward() | ReceiveBackward() | Norm():
            return True
        case _:
            assert_never(action)
