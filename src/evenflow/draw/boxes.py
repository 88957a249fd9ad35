"""What of a timeline is drawn, and in which look: picture and page show the same boxes."""

from __future__ import annotations

from collections.abc import Iterator
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
)
from evenflow.timeline import Event, RankTimeline, Timeline


@dataclass(frozen=True, slots=True)
class Box:
    """One drawn action: its class of colour, its number if it has one, and its span from the step's begin."""

    kind: str
    number: str
    event: Event
    start_s: float
    end_s: float


def boxes(rank: RankTimeline, zero: float) -> Iterator[Box]:
    """The actions of a rank that a picture shows, from moment `zero` on."""
    for event in rank.events:
        look = _look(event.action)
        if look is not None:
            yield Box(*look, event, event.start_s - zero, event.end_s - zero)


def _look(action: Action) -> tuple[str, str] | None:
    """How an action is drawn; None for what takes no time of its own."""
    match action:
        case Forward(_, microbatch):
            return "f", str(microbatch)
        case Backward(_, microbatch):
            return "b", str(microbatch)
        case InputBackward(_, microbatch):
            return "i", str(microbatch)
        case WeightBackward(_, microbatch):
            return "w", str(microbatch)
        case Norm() | Step():
            return "o", ""
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
