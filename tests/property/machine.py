"""A machine that runs a program with tokens for tensors: a second opinion that knows none of verify's rules.

Each directed edge between two ranks is one queue without tags: the n-th send meets the n-th receive, whatever
they carry. A send is complete once its receive is posted. NORM combines over all ranks, so none leaves it
before all have come. A rank that uses a tensor it does not hold, or not the right one, is refused.
"""

from __future__ import annotations

from typing import assert_never

from evenflow.program import (
    Action,
    Backward,
    Forward,
    Norm,
    Program,
    ReceiveBackward,
    ReceiveForward,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
)

Tensor = tuple[str, int, int]  # what it is, the stage that made it, its microbatch


class Refused(Exception):
    """The program did what no machine can do."""


class _Rank:
    def __init__(self) -> None:
        self.next = 0
        self.holds: dict[Tensor, Tensor] = {}  # by the name under which it is known here: what it really is
        self.sends: dict[Tensor, tuple[tuple[int, int], int]] = {}  # under way: edge and place in its queue
        self.receives: dict[Tensor, tuple[tuple[int, int], int]] = {}
        self.gradients: set[tuple[int, int]] = set()
        self.normed = self.stepped = False


def run(program: Program) -> None:
    """Run all ranks for as long as any can go on, then look at what they are left with."""
    ranks = [_Rank() for _ in program.ranks]
    sent: dict[tuple[int, int], list[Tensor]] = {}
    asked: dict[tuple[int, int], list[Tensor]] = {}
    moved = True
    while moved:
        moved = False
        for number, rank in enumerate(ranks):
            while rank.next < len(program.ranks[number]) and _take(program, ranks, number, sent, asked):
                rank.next += 1
                moved = True
    if any(rank.next < len(actions) for rank, actions in zip(ranks, program.ranks, strict=True)):
        raise Refused("deadlock")
    if any(len(sent.get(edge, [])) != len(asked.get(edge, [])) for edge in {*sent, *asked}):
        raise Refused("a transfer without its other end")
    for number, rank in enumerate(ranks):
        own = {stage for stage, owner in enumerate(program.stage_rank) if owner == number}
        if rank.holds or rank.sends or rank.receives:
            raise Refused(f"rank {number} is left with {rank.holds} {rank.sends} {rank.receives}")
        if rank.gradients != {(stage, k) for stage in own for k in range(program.microbatches)}:
            raise Refused(f"rank {number} lacks gradients")
        if not rank.stepped:
            raise Refused(f"rank {number} has not stepped")


def _take(program, ranks, number, sent, asked) -> bool:
    rank, action = ranks[number], program.ranks[number][ranks[number].next]
    last = program.stages - 1
    if rank.normed and not isinstance(action, Step):
        raise Refused("work between the norm and the update")
    if rank.stepped:
        raise Refused("work after the update")
    match action:
        case Forward(stage, k):
            if stage > 0 and not _arrived(rank, ("output", stage - 1, k), sent):
                return False
            _make(rank, ("saved", stage, k))
            if stage < last:
                _make(rank, ("output", stage, k))
        case Backward(stage, k):
            if stage < last and not _arrived(rank, ("gradient", stage + 1, k), sent):
                return False
            _drop(rank, ("saved", stage, k))
            if stage < last:
                _drop(rank, ("gradient", stage + 1, k))
            if stage > 0:
                _drop(rank, ("output", stage - 1, k))
                _make(rank, ("gradient", stage, k))
            if (stage, k) in rank.gradients:
                raise Refused("a gradient added twice")
            rank.gradients.add((stage, k))
        case SendForward(stage, k):
            _send(rank, ("output", stage, k), (number, program.stage_rank[stage + 1]), sent)
        case SendBackward(stage, k):
            _send(rank, ("gradient", stage, k), (number, program.stage_rank[stage - 1]), sent)
        case ReceiveForward(stage, k):
            _ask(rank, ("output", stage - 1, k), (program.stage_rank[stage - 1], number), asked)
        case ReceiveBackward(stage, k):
            _ask(rank, ("gradient", stage + 1, k), (program.stage_rank[stage + 1], number), asked)
        case ReleaseForward(stage, k):
            return _release(rank, ("output", stage, k), asked)
        case ReleaseBackward(stage, k):
            return _release(rank, ("gradient", stage, k), asked)
        case Norm():
            if not all(_is_at_norm(program, other, own) for other, own in enumerate(ranks)):
                return False
            rank.normed = True
        case Step():
            if not rank.normed:
                raise Refused("an update without a norm")
            rank.stepped = True
        case _:
            assert_never(action)
    return True


def _is_at_norm(program: Program, number: int, rank: _Rank) -> bool:
    actions: tuple[Action, ...] = program.ranks[number]
    return rank.normed or (rank.next < len(actions) and isinstance(actions[rank.next], Norm))


def _make(rank: _Rank, tensor: Tensor) -> None:
    if tensor in rank.holds:
        raise Refused(f"{tensor} made twice")
    rank.holds[tensor] = tensor


def _drop(rank: _Rank, tensor: Tensor) -> None:
    if rank.holds.pop(tensor, None) != tensor:
        raise Refused(f"{tensor} is not here")


def _send(rank: _Rank, tensor: Tensor, edge: tuple[int, int], sent: dict[tuple[int, int], list[Tensor]]) -> None:
    if tensor not in rank.holds or tensor in rank.sends:
        raise Refused(f"{tensor} cannot be sent")
    queue = sent.setdefault(edge, [])
    rank.sends[tensor] = (edge, len(queue))
    queue.append(rank.holds[tensor])


def _ask(rank: _Rank, tensor: Tensor, edge: tuple[int, int], asked: dict[tuple[int, int], list[Tensor]]) -> None:
    if tensor in rank.receives or tensor in rank.holds:
        raise Refused(f"{tensor} asked for twice")
    queue = asked.setdefault(edge, [])
    rank.receives[tensor] = (edge, len(queue))
    queue.append(tensor)


def _arrived(rank: _Rank, tensor: Tensor, sent: dict[tuple[int, int], list[Tensor]]) -> bool:
    """Whether a tensor that was asked for is here; what came must be what is needed."""
    if tensor not in rank.receives:
        raise Refused(f"{tensor} was not asked for")
    edge, place = rank.receives[tensor]
    queue = sent.get(edge, [])
    if place >= len(queue):
        return False
    if queue[place] != tensor:
        raise Refused(f"{queue[place]} came where {tensor} was asked for")
    del rank.receives[tensor]
    rank.holds[tensor] = tensor
    return True


def _release(rank: _Rank, tensor: Tensor, asked: dict[tuple[int, int], list[Tensor]]) -> bool:
    if tensor not in rank.sends:
        raise Refused(f"{tensor} was not sent")
    edge, place = rank.sends[tensor]
    if place >= len(asked.get(edge, [])):
        return False
    del rank.sends[tensor]
    _drop(rank, tensor)
    return True
