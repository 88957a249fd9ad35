"""How many receive buffers a rank needs: a pool of that many, made once, is never empty when a receive is posted.

A rank takes a buffer when it posts a receive and gives it back at a later action of its own, so how many are out at
once follows from the order of its actions alone: no timing, however late a peer, makes it more. `verify` proves that
every receive has the action that gives its buffer back, which is why a pool is full again at the end of a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from evenflow.program.actions import (
    Backward,
    Forward,
    ReceiveBackward,
    ReceiveForward,
    WeightBackward,
)
from evenflow.program.program import Program

Received = type[ReceiveForward] | type[ReceiveBackward]


def receive_buffers(program: Program, rank: int) -> dict[tuple[int, Received], int]:
    """The most receive buffers of each stage and direction that `rank` has in use at once.

    Args:
        program: a verified program.
        rank: whose buffers.

    Returns:
        By (stage, `ReceiveForward` or `ReceiveBackward`); stages that receive nothing are absent.
    """
    most: dict[tuple[int, Received], int] = {}
    for used in _in_use(program, rank):
        for key, count in used.items():
            most[key] = max(most.get(key, 0), count)
    return most


def buffers_at_once(program: Program, rank: int) -> int:
    """The most receive buffers that `rank` has in use at once, of all its stages and both directions."""
    return max((used.total() for used in _in_use(program, rank)), default=0)


def _in_use(program: Program, rank: int) -> Iterator[Counter[tuple[int, Received]]]:
    """The buffers in use after each action that takes one; the same counter every time.

    A stage's input and the gradient of its output are read until its backward is complete (B or W), since what a
    linear layer queues between I and W may be those very buffers. A forward-only program's input is read until F.
    """
    used: Counter[tuple[int, Received]] = Counter()
    taken: set[tuple[int, Received, int]] = set()

    def give_back(stage: int, kind: Received, microbatch: int) -> None:
        if (stage, kind, microbatch) in taken:
            taken.remove((stage, kind, microbatch))
            used[stage, kind] -= 1

    for action in program.ranks[rank]:
        match action:
            case ReceiveForward(stage, microbatch) | ReceiveBackward(stage, microbatch):
                taken.add((stage, type(action), microbatch))
                used[stage, type(action)] += 1
                yield used
            case Forward(stage, microbatch) if program.forward_only:
                give_back(stage, ReceiveForward, microbatch)
            case Backward(stage, microbatch) | WeightBackward(stage, microbatch):
                give_back(stage, ReceiveForward, microbatch)
                give_back(stage, ReceiveBackward, microbatch)
            case _:
                pass
