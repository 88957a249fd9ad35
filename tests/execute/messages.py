"""What a rank holds while gradients move into the messages that replicas add: plans do not count that yet."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.cost import StageMemory
from evenflow.program import Program, ReduceGrad, peak_bytes, rank_memory


def peak_with_messages(program: Program, memory: Sequence[StageMemory], rank: int, messages: Sequence[int]) -> int:
    """A rank's predicted peak, or at one of its REDUCE_GRADs what it holds and a message of its stage, if that is more.

    Args:
        program: with its reductions.
        memory: of each stage.
        rank: which rank.
        messages: bytes of each stage's largest message.
    """
    after = rank_memory(program, memory, rank).after_bytes
    reduced = [
        int(after[place]) + messages[action.stage]
        for place, action in enumerate(program.ranks[rank])
        if isinstance(action, ReduceGrad)
    ]
    return max([peak_bytes(program, memory, rank), *reduced])
