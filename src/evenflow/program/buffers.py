"""How many receive buffers a rank needs: a pool of that many, made once, is never empty when a receive is posted.

A rank takes a buffer when it posts a receive and gives it back at a later action of its own, so how many are out at
once follows from the order of its actions alone: no timing, however late a peer, makes it more. `verify` proves that
every receive has the action that gives its buffer back, which is why a pool is full again at the end of a step.
"""

from __future__ import annotations

from collections import Counter

from evenflow.program.actions import (
    Backward,
    Forward,
    InputBackward,
    ReceiveBackward,
    ReceiveForward,
    WeightBackward,
)
from evenflow.program.program import Program

Received = type[ReceiveForward] | type[ReceiveBackward]


def receive_buffers(
    program: Program, rank: int, *, gradients_until_weights: bool = True
) -> dict[tuple[int, Received], int]:
    """The most receive buffers of each stage and direction that `rank` has in use at once.

    A stage's input is read until its backward is complete (B or W), in a forward-only program until F. An output
    gradient is read by B or I; what a linear layer queues between I and W may be that very buffer.

    Args:
        program: a verified program.
        rank: whose buffers.
        gradients_until_weights: whether an output gradient's buffer may be read until W; else it is free after I.

    Returns:
        By (stage, `ReceiveForward` or `ReceiveBackward`); stages that receive nothing are absent.
    """
    used: Counter[tuple[int, Received]] = Counter()
    most: dict[tuple[int, Received], int] = {}
    taken: set[tuple[int, Received, int]] = set()

    def give_back(stage: int, kind: Received, microbatch: int) -> None:
        if (stage, kind, microbatch) in taken:
            taken.remove((stage, kind, microbatch))
            used[stage, kind] -= 1

    for action in program.ranks[rank]:
        match action:
            case ReceiveForward(stage, microbatch) | ReceiveBackward(stage, microbatch):
                key = stage, type(action)
                taken.add((*key, microbatch))
                used[key] += 1
                most[key] = max(most.get(key, 0), used[key])
            case Forward(stage, microbatch) if program.forward_only:
                give_back(stage, ReceiveForward, microbatch)
            case InputBackward(stage, microbatch) if not gradients_until_weights:
                give_back(stage, ReceiveBackward, microbatch)
            case Backward(stage, microbatch) | WeightBackward(stage, microbatch):
                give_back(stage, ReceiveForward, microbatch)
                give_back(stage, ReceiveBackward, microbatch)
            case _:
                pass
    return most
