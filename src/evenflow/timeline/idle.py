"""Why a rank idles: its step's wall time, less busy and optimizer, split by what it waited for.

* A compute action's gap is split at the moment when its peer finished making the tensor: before that the
  rank waited for the peer, after that for the transfer.
* A RELEASE is split likewise, at the moment when its peer posted the receive.
* STEP's gap is split at the moment when the last rank had its norm: what follows is the reduction.

What remains is overhead: posting sends, fetching the batch, the loop itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from evenflow.program import (
    Action,
    Backward,
    Forward,
    Norm,
    ReceiveBackward,
    ReceiveForward,
    ReleaseBackward,
    ReleaseForward,
    Step,
)
from evenflow.timeline.timeline import Timeline

Cause = Literal["waiting", "transfer", "reduction", "overhead"]


@dataclass(frozen=True, slots=True)
class Wait:
    """A rank's idle seconds before or in one of its actions.

    Attributes:
        cause: what it waited for.
        action: the action of this rank that was held up.
        peer: the rank that was waited for (None for transfer, reduction and overhead).
        seconds: how long.
    """

    cause: Cause
    action: Action
    peer: int | None
    seconds: float


def waits(timeline: Timeline, rank: int) -> tuple[Wait, ...]:
    """All idle of one rank; the seconds add up to its `idle_s`."""
    finished = {event.action: event.end_s for own in timeline.ranks for event in own.events}
    asked = {event.action: event.start_s for own in timeline.ranks for event in own.events}
    norm_ends = [
        next((event.end_s for event in own.events if isinstance(event.action, Norm)), own.end_s)
        for own in timeline.ranks
    ]
    slowest = max(range(len(norm_ends)), key=norm_ends.__getitem__)
    found: list[Wait] = []
    cursor = timeline.ranks[rank].begin_s
    for event in timeline.ranks[rank].events:
        action, gap = event.action, event.start_s - cursor
        match action:
            case Forward() | Backward():
                producer = _producer(action, timeline.program.stages - 1)
                if producer is None:
                    found.append(Wait("overhead", action, None, gap))
                else:
                    peer = timeline.program.stage_rank[producer.stage]
                    found += _split(action, gap, finished[producer] - cursor, peer, "transfer")
            case Step():
                found += _split(action, gap, norm_ends[slowest] - cursor, slowest, "reduction")
            case ReleaseForward() | ReleaseBackward():
                receive = _receiver(action)
                peer = timeline.program.stage_rank[receive.stage]
                found.append(Wait("overhead", action, None, gap))
                found += _split(action, event.seconds, asked[receive] - event.start_s, peer, "transfer")
            case Norm():
                found.append(Wait("overhead", action, None, gap))
            case _:
                found.append(Wait("overhead", action, None, gap + event.seconds))
        cursor = event.end_s
    return tuple(wait for wait in found if wait.seconds)


def idle_by_cause(timeline: Timeline, rank: int) -> dict[str, float]:
    """Idle seconds of one rank by cause; waiting is told apart by peer: `waiting for rank 1`."""
    totals: defaultdict[str, float] = defaultdict(float)
    for wait in waits(timeline, rank):
        name = f"waiting for rank {wait.peer}" if wait.cause == "waiting" else wait.cause
        totals[name] += wait.seconds
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _producer(action: Forward | Backward, last_stage: int) -> Forward | Backward | None:
    """The action on another rank that makes this one's input."""
    if isinstance(action, Forward):
        return Forward(action.stage - 1, action.microbatch) if action.stage else None
    return Backward(action.stage + 1, action.microbatch) if action.stage < last_stage else None


def _receiver(action: ReleaseForward | ReleaseBackward) -> ReceiveForward | ReceiveBackward:
    """The other rank's action without which a send is never complete."""
    if isinstance(action, ReleaseForward):
        return ReceiveForward(action.stage + 1, action.microbatch)
    return ReceiveBackward(action.stage - 1, action.microbatch)


def _split(action: Action, gap: float, until: float, peer: int, rest: Cause) -> list[Wait]:
    waited = min(max(until, 0.0), gap)
    return [Wait("waiting", action, peer, waited), Wait(rest, action, None, gap - waited)]
