"""Memory accounting: the bytes that each rank holds before, during and after each of its actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from evenflow.cost import StageMemory
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


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes held around one action: the most while it runs, and what is left after it."""

    peak_bytes: int
    after_bytes: int


def rank_memory(program: Program, memory: Sequence[StageMemory], rank: int) -> tuple[Held, ...]:
    """The bytes that `rank` holds at each of its actions; `memory[s]` is stage `s`'s.

    Parameters, gradients and optimizer state are held from the start: after the first step they are.
    """
    held = sum(
        stage.state_bytes for stage, owner in zip(memory, program.stage_rank, strict=True) if owner == rank
    )
    track: list[Held] = []
    for action in program.ranks[rank]:
        passing, change = _effect(action, memory, program.stages - 1)
        track.append(Held(held + max(passing, change, 0), held + change))
        held += change
    return tuple(track)


def peak_bytes(program: Program, memory: Sequence[StageMemory], rank: int) -> int:
    """The most bytes that `rank` holds in a step."""
    return max(held.peak_bytes for held in rank_memory(program, memory, rank))


def _effect(action: Action, memory: Sequence[StageMemory], last_stage: int) -> tuple[int, int]:
    """Bytes that an action holds in passing, and by how much it changes what is held after it."""
    match action:
        case Forward(stage, _):
            own = memory[stage]
            return own.forward_peak_bytes, own.saved_bytes + own.output_bytes
        case Backward(stage, _):
            own = memory[stage]
            gradient = own.output_bytes if stage < last_stage else 0
            made = own.input_bytes  # the input gradient, held until RELEASE_B
            return own.backward_peak_bytes, made - own.saved_bytes - own.input_bytes - gradient
        case ReceiveForward(stage, _):
            return 0, memory[stage].input_bytes
        case ReceiveBackward(stage, _):
            return 0, memory[stage].output_bytes
        case ReleaseForward(stage, _):
            return 0, -memory[stage].output_bytes
        case ReleaseBackward(stage, _):
            return 0, -memory[stage].input_bytes
        case SendForward() | SendBackward() | Norm() | Step():
            return 0, 0
        case _:
            assert_never(action)
