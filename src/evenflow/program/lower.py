"""Lowering: a schedule's compute order in, a whole program out, with every transfer, release and update placed.

    compute order   rank 0:  F0 F1 B0 B1                 rank 1:  F0 B0 F1 B1
    program         rank 0:  F0 SEND_F0 RECV_B0 F1 SEND_F1 RECV_B1 B0 B1 RELEASE_F0 RELEASE_F1 NORM STEP

* A send starts right after the compute action that made its tensor. It must be complete before the compute
  action that would make a third unsent tensor of the same stage and direction, and at the latest before NORM.
* A receive is posted at the last moment that keeps nobody waiting: when its tensor is made, and at the latest
  one compute action before the one that needs it, so that the transfer hides behind that one. When tensors are
  made is looked up in the times of the compute order (`times.py`), with costs or, without, a second an action.
* On every directed edge between two ranks receives stand in the order of the sends, whatever the order in which
  they are needed: transports without tags need that.
* A stage's gradients are reduced right after the last of them, so that the reduction overlaps what follows;
  those of tied weights are added together first, group after group in the same order on all ranks.
* Every rank then takes the norm of its gradients and updates its parameters.

No deadlock can come of it: taken by the times of the compute order, every receive is posted no later than its
tensor is made and every release comes after both, so there is an order in which everything can happen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from evenflow.errors import ProgramError
from evenflow.program.actions import (
    Action,
    Backward,
    Compute,
    Forward,
    InputBackward,
    Norm,
    Order,
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
from evenflow.program.program import Program
from evenflow.program.text import action_text
from evenflow.program.times import OrderTimes, encode, order_times
from evenflow.program.work import Work, even_work

# Tensors of one stage and direction that may be on their way at once: one leaves while the next is computed.
_SENDS_UNDER_WAY = 2

_Receive = ReceiveForward | ReceiveBackward
_Release = ReleaseForward | ReleaseBackward


def lower(
    order: Order,
    stage_rank: Sequence[int],
    microbatches: int,
    work: Work | None = None,
    *,
    forward_only: bool = False,
    reduces: bool = False,
    tied: Sequence[Sequence[int]] = (),
) -> Program:
    """Add communication, releases, reductions and the optimizer to each rank's compute order.

    Args:
        order: each rank's compute actions.
        stage_rank: the rank that holds each stage.
        microbatches: microbatches of the step.
        work: what actions and transfers cost; by default a second and nothing.
        forward_only: whether there is no backward and no update.
        reduces: whether weight gradients are added over data-parallel replicas.
        tied: groups of stages that share weights; those that are all on one rank need nothing added, but their
            gradients are complete only when all of them have theirs.

    Raises:
        ProgramError: an action's stage is not on its rank, or its microbatch does not exist.
    """
    ranks = tuple(stage_rank)
    _check_places(order, ranks, microbatches)
    apart = tuple(tuple(group) for group in tied if len({ranks[stage] for stage in group}) > 1)
    work = work or even_work(ranks, microbatches)
    times = order_times(encode(order, work), work)
    receives = _place_receives(order, ranks, times)
    reductions = None if forward_only else _place_reductions(order, ranks, times, tied, reduces)
    return Program(
        stage_rank=ranks,
        microbatches=microbatches,
        ranks=tuple(
            _lower_rank(actions, own, ranks, None if reductions is None else reductions[rank])
            for rank, (actions, own) in enumerate(zip(order, receives, strict=True))
        ),
        forward_only=forward_only,
        reduces=reduces,
        tied=apart,
    )


def _check_places(order: Order, ranks: tuple[int, ...], microbatches: int) -> None:
    """What all that follows takes for granted; `verify` has the rest."""
    for rank, actions in enumerate(order):
        for action in actions:
            if not 0 <= action.stage < len(ranks) or ranks[action.stage] != rank:
                raise ProgramError(f"rank {rank}: {action_text(action)}: stage {action.stage} is not on this rank")
            if not 0 <= action.microbatch < microbatches:
                raise ProgramError(f"rank {rank}: {action_text(action)}: microbatches run from 0 to {microbatches - 1}")


@dataclass(slots=True)
class _Message:
    """A tensor on its way: when it is made, and before which compute action its receive is posted."""

    made: tuple[float, int]
    slot: int
    receive: _Receive


def _place_receives(order: Order, ranks: tuple[int, ...], times: OrderTimes) -> list[list[list[_Receive]]]:
    """For each rank and each of its compute actions, the receives to post before it."""
    needed_at = [{_needs(action): at for at, action in enumerate(actions)} for actions in order]
    edges: dict[tuple[int, int], list[_Message]] = {}
    done = _moments(times)
    for rank, actions in enumerate(order):
        for action, made in zip(actions, zip(times.end[rank], times.turn[rank], strict=True), strict=True):
            receive = _arrives_as(action, ranks)
            if receive is None or receive not in needed_at[target := ranks[receive.stage]]:
                continue
            latest = max(needed_at[target][receive] - 1, 0)
            slot = min(bisect_right(done[target], made), latest)
            edges.setdefault((rank, target), []).append(_Message(made, slot, receive))
    placed: list[list[list[_Message]]] = [[[] for _ in actions] for actions in order]
    for (_, target), messages in edges.items():
        slot = len(order[target])
        for message in reversed(messages):
            slot = message.slot = min(slot, message.slot)
        for message in messages:
            placed[target][message.slot].append(message)
    return [
        [[message.receive for message in sorted(slot, key=lambda own: own.made)] for slot in slots] for slots in placed
    ]


def _moments(times: OrderTimes) -> list[list[tuple[float, int]]]:
    """When each compute action is done, to be compared with when a tensor is made.

    An action that ends just when the tensor is made began before that, so it cannot wait for it, unless it takes no
    time. Those that take none are told apart by an order in which all can happen: a receive that is posted after an
    action that has to come later would never be posted.
    """
    return [
        [(end, turn if start == end else -1) for start, end, turn in zip(starts, ends, turns, strict=True)]
        for starts, ends, turns in zip(times.start, times.end, times.turn, strict=True)
    ]


def _place_reductions(
    order: Order, ranks: tuple[int, ...], times: OrderTimes, tied: Sequence[Sequence[int]], reduces: bool
) -> list[list[list[Action]]]:
    """For each rank and each of its compute actions, the reductions to start after it."""
    placed: list[list[list[Action]]] = [[[] for _ in actions] for actions in order]
    last: dict[int, int] = {}  # where each stage's last gradient is computed
    for actions in order:
        last |= {own.stage: at for at, own in enumerate(actions) if isinstance(own, Backward | WeightBackward)}

    def complete_at(group: Sequence[int]) -> float:
        return max((times.end[ranks[stage]][last[stage]] for stage in group), default=0.0)

    slots = [0] * len(order)
    for group in sorted(([stage for stage in group if stage in last] for group in tied), key=complete_at):
        for stage in group:
            slots[ranks[stage]] = max(slots[ranks[stage]], last[stage])
        for stage in group:
            last[stage] = slots[ranks[stage]]
            if len({ranks[own] for own in group}) > 1:
                placed[ranks[stage]][last[stage]].append(ReduceTied(stage))
    for stage in sorted(last) if reduces else ():
        placed[ranks[stage]][last[stage]].append(ReduceGrad(stage))
    return placed


def _arrives_as(action: Compute, ranks: tuple[int, ...]) -> _Receive | None:
    """The receive of what a compute action sends to another rank."""
    stage, microbatch = action.stage, action.microbatch
    match action:
        case Forward():
            if stage + 1 < len(ranks) and ranks[stage + 1] != ranks[stage]:
                return ReceiveForward(stage + 1, microbatch)
        case Backward() | InputBackward():
            if stage and ranks[stage - 1] != ranks[stage]:
                return ReceiveBackward(stage - 1, microbatch)
        case WeightBackward():
            pass
    return None


def _needs(action: Compute) -> _Receive | None:
    """The receive that a compute action waits for, if its tensor comes from another rank."""
    match action:
        case Forward(stage, microbatch):
            return ReceiveForward(stage, microbatch)
        case Backward(stage, microbatch) | InputBackward(stage, microbatch):
            return ReceiveBackward(stage, microbatch)
        case WeightBackward():
            return None


def _lower_rank(
    compute: tuple[Compute, ...],
    receives: list[list[_Receive]],
    ranks: tuple[int, ...],
    reductions: list[list[Action]] | None,
) -> tuple[Action, ...]:
    program: list[Action] = []
    under_way: dict[tuple[bool, int], deque[_Release]] = {}  # by direction and stage
    for at, (action, own) in enumerate(zip(compute, receives, strict=True)):
        program += own
        arrival = _arrives_as(action, ranks)
        if arrival is None:
            program.append(action)
        else:
            is_backward = isinstance(arrival, ReceiveBackward)
            releases = under_way.setdefault((is_backward, action.stage), deque())
            if len(releases) == _SENDS_UNDER_WAY:
                program.append(releases.popleft())
            program.append(action)
            if is_backward:
                program.append(SendBackward(action.stage, action.microbatch))
                releases.append(ReleaseBackward(action.stage, action.microbatch))
            else:
                program.append(SendForward(action.stage, action.microbatch))
                releases.append(ReleaseForward(action.stage, action.microbatch))
        if reductions is not None:
            program += reductions[at]
    for key in sorted(under_way):
        program += under_way[key]
    return tuple(program) if reductions is None else (*program, Norm(), Step())
