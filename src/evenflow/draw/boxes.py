"""What of a timeline is drawn, and in which look: picture and page show the same boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from evenflow.program import (
    Action,
    Backward,
    Forward,
    InputBackward,
    Norm,
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
    stages_of,
)
from evenflow.timeline import Event, Timeline

# What a box can be, in the order of a legend.
_WORDS = {
    "f": "forward",
    "b": "backward",
    "i": "backward, input half",
    "w": "backward, weight half",
    "o": "norm and update",
}


@dataclass(frozen=True, slots=True)
class Box:
    """One drawn action.

    Attributes:
        kind: its class of colour.
        number: its microbatch, if it has one.
        band: how far into its rank's stages it is: 0 for the first, 1 for the last. A box of a later stage has a
            band, the thicker the later: colours tell kinds apart already, and a band shows without colour too.
        event: what happened.
        start_s: when it began, from the step's begin.
        end_s: when it ended, from the step's begin.
    """

    kind: str
    number: str
    band: float
    event: Event
    start_s: float
    end_s: float


def boxes(timeline: Timeline, rank: int) -> Iterator[Box]:
    """The actions of a rank that a picture shows."""
    zero = begin_s(timeline)
    stages = stages_of(timeline.program.stage_rank, rank)
    band = {stage: at / (len(stages) - 1) if at else 0.0 for at, stage in enumerate(stages)}
    for event in timeline.ranks[rank].events:
        look = _look(event.action)
        if look is not None:
            kind, number, stage = look
            yield Box(kind, number, band.get(stage, 0.0), event, event.start_s - zero, event.end_s - zero)


def drawn_kinds(timelines: Sequence[Timeline]) -> tuple[tuple[str, str], ...]:
    """The kinds of boxes that occur, each with its words: what a legend has to explain."""
    looks = (_look(action) for timeline in timelines for actions in timeline.program.ranks for action in actions)
    found = {look[0] for look in looks if look is not None}
    return tuple((kind, words) for kind, words in _WORDS.items() if kind in found)


def most_stages(timelines: Sequence[Timeline]) -> int:
    """How many stages the rank with most of them holds."""
    owners = [timeline.program.stage_rank for timeline in timelines]
    return max((own.count(rank) for own in owners for rank in own), default=1)


def _look(action: Action) -> tuple[str, str, int] | None:
    """An action's kind, number and stage (-1 if it has none); None for what takes no time of its own."""
    match action:
        case Forward(stage, microbatch):
            return "f", str(microbatch), stage
        case Backward(stage, microbatch):
            return "b", str(microbatch), stage
        case InputBackward(stage, microbatch):
            return "i", str(microbatch), stage
        case WeightBackward(stage, microbatch):
            return "w", str(microbatch), stage
        case Norm() | Step():
            return "o", "", -1
        case ReduceTied() | ReduceGrad():
            return None
        case SendForward() | ReceiveForward() | ReleaseForward():
            return None
        case SendBackward() | ReceiveBackward() | ReleaseBackward():
            return None
        case _:
            assert_never(action)


def begin_s(timeline: Timeline) -> float:
    """The moment at which the first rank begins its step: a picture's left edge."""
    return min(rank.begin_s for rank in timeline.ranks)


def end_s(timeline: Timeline) -> float:
    """The moment at which the last rank ends its step."""
    return max(rank.end_s for rank in timeline.ranks)
