"""Lowering: a schedule's compute order in, a whole program out, with every transfer, release and update placed.

    compute order   rank 0:  F0 F1 B0 B1                 rank 1:  F0 B0 F1 B1
    program         rank 0:  F0 SEND_F0 RECV_B0 F1 SEND_F1 RECV_B1 B0 B1 RELEASE_F0 RELEASE_F1 NORM STEP

* A receive is posted one compute action before the one that needs it: early enough to hide the transfer,
  late enough that at most two buffers a direction are ever held.
* A send starts right after the compute action that made its tensor. It must be complete before the compute
  action that would make a third unsent tensor on the same edge, and at the latest before the norm.
* Every rank then takes the norm of its gradients and updates its parameters.
"""

from __future__ import annotations

from collections import deque

from evenflow.program.actions import (
    Action,
    Backward,
    Compute,
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
from evenflow.program.schedules import compute_order

# Tensors that may be on their way at once on one directed edge: one leaves while the next is computed.
_SENDS_UNDER_WAY = 2


def build_program(schedule: str, stages: int, microbatches: int) -> Program:
    """The program of a named schedule with one stage on each rank.

    Raises:
        InputError: there is no such schedule.
    """
    order = compute_order(schedule, stages, microbatches)
    return lower(order, tuple(range(stages)), microbatches)


def lower(order: tuple[tuple[Compute, ...], ...], stage_rank: tuple[int, ...], microbatches: int) -> Program:
    """Add communication, releases and the optimizer to each rank's compute order.

    Args:
        order: each rank's compute actions.
        stage_rank: the rank that holds each stage; neighbouring stages are on different ranks.
        microbatches: microbatches of the step.
    """
    last = len(stage_rank) - 1
    return Program(stage_rank, microbatches, tuple(_lower_rank(actions, last) for actions in order))


def _lower_rank(compute: tuple[Compute, ...], last_stage: int) -> tuple[Action, ...]:
    program: list[Action] = []
    forward_under_way: dict[int, deque[ReleaseForward]] = {}
    backward_under_way: dict[int, deque[ReleaseBackward]] = {}
    for position, action in enumerate(compute):
        if position == 0:
            program += _receives(action, last_stage)
        if position + 1 < len(compute):
            program += _receives(compute[position + 1], last_stage)
        stage, microbatch = action.stage, action.microbatch
        if isinstance(action, Forward):
            sent_forward = forward_under_way.setdefault(stage, deque())
            if len(sent_forward) == _SENDS_UNDER_WAY:
                program.append(sent_forward.popleft())
            program.append(action)
            if stage < last_stage:
                program.append(SendForward(stage, microbatch))
                sent_forward.append(ReleaseForward(stage, microbatch))
        else:
            sent_backward = backward_under_way.setdefault(stage, deque())
            if len(sent_backward) == _SENDS_UNDER_WAY:
                program.append(sent_backward.popleft())
            program.append(action)
            if stage > 0:
                program.append(SendBackward(stage, microbatch))
                sent_backward.append(ReleaseBackward(stage, microbatch))
    for stage in sorted(forward_under_way):
        program += forward_under_way[stage]
    for stage in sorted(backward_under_way):
        program += backward_under_way[stage]
    program += [Norm(), Step()]
    return tuple(program)


def _receives(action: Compute, last_stage: int) -> list[Action]:
    """What must have arrived before `action` can compute."""
    if isinstance(action, Backward):
        return [ReceiveBackward(action.stage, action.microbatch)] if action.stage < last_stage else []
    return [ReceiveForward(action.stage, action.microbatch)] if action.stage > 0 else []
