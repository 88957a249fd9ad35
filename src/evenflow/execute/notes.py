"""What a rank's heartbeat says of each of its actions: made once, since steps take the same ones over and over."""

from __future__ import annotations

from evenflow.launch import action_note
from evenflow.program import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
    Program,
    ReleaseBackward,
    ReleaseForward,
    Step,
    action_text,
    stages_of,
)


def notes_of(program: Program, rank: int) -> tuple[bytes, ...]:
    """For each action of a rank its text, and whether it may begin by waiting for another rank.

    By that the watch tells ranks that are stuck from those that wait for them.
    """
    here = frozenset(stages_of(program.stage_rank, rank))

    def waits(action: Action) -> bool:
        match action:
            case Forward(stage):
                return stage > 0 and stage - 1 not in here
            case Backward(stage) | InputBackward(stage):
                return stage < program.stages - 1 and stage + 1 not in here
            case _:
                return isinstance(action, ReleaseForward | ReleaseBackward | Norm | Step)

    return tuple(action_note(action_text(action), waits(action)) for action in program.ranks[rank])
